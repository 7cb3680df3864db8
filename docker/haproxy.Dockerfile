# The image of HAProxy for docker/replicas.yaml, from Debian's package. Its context is deploy/haproxy:
#   docker build -f docker/haproxy.Dockerfile -t haproxy-users deploy/haproxy
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
# Not mounted: a checkout may be readable by its owner alone.
COPY --chmod=644 haproxy.cfg compose.cfg /etc/haproxy/
USER haproxy
EXPOSE 8080 8081
ENTRYPOINT ["haproxy"]
CMD ["-f", "/etc/haproxy/haproxy.cfg", "-f", "/etc/haproxy/compose.cfg"]
