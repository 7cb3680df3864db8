# The image of user-svc. From the top of the repository: docker build -f docker/user-svc.Dockerfile -t user-svc .
# No `# syntax=` line: it would download a front end, and the one built into Docker (20.10 or newer) does all we use.

# ---- build: the same text in both Dockerfiles, so that BuildKit runs it once for both images ----
FROM rust:1.95-slim-trixie AS build
# For OpenSSL, which is built from source and linked statically, as is libpq.
RUN apt-get update && apt-get install -y --no-install-recommends make perl && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# .dockerignore keeps rust-toolchain.toml out: it names rustfmt and clippy, which this image lacks, and rustup would
# download them. The tag above pins the same compiler.
COPY . .
ARG GIT_REVISION=unknown
# The cache mounts keep downloads and compiled dependencies from build to build. Locked: cargo's own locks lie outside.
# `touch`: cargo knows a change by its time, and files of another clone may differ and yet be older than the cache. So
# our own crates are always compiled, dependencies only when they change.
RUN --mount=type=cache,id=user-svc-data-svc-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=user-svc-data-svc-target,target=/src/target,sharing=locked \
    find crates migrations -type f -exec touch {} + \
 && cargo build --release --locked -p user-svc -p data-svc --features user-svc/static-libpq,data-svc/static-libpq \
 && install -D -t /out target/release/user-svc target/release/data-svc "$(cc -print-file-name=libgcc_s.so.1)"

# ---- run: glibc, CA certificates and the binary; no shell, no package manager ----
# Not distroless/cc: of what it adds, 12 MB, we need libgcc alone; its OpenSSL would be a second one, unused.
FROM gcr.io/distroless/base-nossl-debian13:nonroot
ARG GIT_REVISION=unknown
LABEL org.opencontainers.image.title="user-svc" \
      org.opencontainers.image.description="Registers users in PostgreSQL" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.revision="$GIT_REVISION"
COPY --from=build /out/libgcc_s.so.1 /usr/lib/
COPY --from=build /out/user-svc /user-svc
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
# HOST: a container's loopback cannot be published. SSL_CERT_FILE: whom `rediss://` and `sslrootcert=system` trust.
ENV HOST=0.0.0.0 SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# The API, and /metrics, which is not to be published.
EXPOSE 8080 9080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=3 CMD ["/user-svc", "health"]
ENTRYPOINT ["/user-svc"]
