//! The HTTP server around a service's routes: it binds, listens, reports, drains and stops.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use actix_http::{HttpService, Protocol};
use actix_service::{ServiceFactoryExt as _, fn_service, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServerHandle, ServiceRequest, ServiceResponse};
use actix_web::http::KeepAlive;
use actix_web::middleware::{Next, from_fn};
use actix_web::rt::net::TcpStream;
use actix_web::rt::task::JoinHandle;
use actix_web::rt::time::sleep;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{App, HttpResponse, HttpServer, rt};
use futures_util::future::LocalBoxFuture;
use rustix::net::{Shutdown, listen, shutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout_at;
use utoipa::openapi::OpenApi;

use super::access_log::Refusals;
use super::connection::ClientStream;
use super::docs::{self, Docs};
use super::drain::{ANSWERED_INTERVAL, Draining};
use super::guard::Guard;
use super::health::{self, Health, Readiness};
use super::idle;
use super::middleware::{FastPath, Telemetry, asks_for_upgrade, close_after};
use crate::config::HttpSettings;
use crate::metrics::Metrics;

/// How long the head of a connection's first request may take to arrive: as long as a body.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept: longer than the minute that most balancers keep theirs.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client may go on sending a body that was refused, so that it reads the answer.
const LINGER: Duration = Duration::from_secs(1);
/// How many connections the kernel may hold until they are accepted: a burst, for the few ms that accepting takes.
const BACKLOG: i32 = 1024;
/// How many clients may scrape `/metrics` at once: a few monitoring systems, each with a spare connection.
const METRICS_CONNECTIONS: usize = 64;

/// Adds the routes of a service to the application of one worker.
pub type Routes = Arc<dyn Fn(&mut ServiceConfig) + Send + Sync>;

/// A service, ready to be served.
pub struct Service {
    /// Its name, for `/version` and the logs.
    pub name: &'static str,
    /// Where and how to listen.
    pub http: HttpSettings,
    /// Its metrics.
    pub metrics: Metrics,
    /// Lets requests in.
    pub guard: Guard,
    /// Returns whether it can do its work now.
    pub readiness: Readiness,
    /// Its API description.
    pub api: OpenApi,
    /// What a proxy removes from the beginning of paths; often nothing.
    pub path_prefix: String,
    /// The requests that it answers before routing, if any.
    pub fast_path: Option<FastPath>,
}

impl Service {
    /// Listens, and serves `routes` and what every service has beside them until SIGTERM or SIGINT.
    ///
    /// Then `/readyz` is 503 and answers say `Connection: close`. After the drain delay no connection is accepted. This
    /// returns when the last request is answered, at the end of the grace period at the latest, and at a second SIGINT.
    ///
    /// # Errors
    /// A port that cannot be bound.
    pub fn serve(self, routes: Routes) -> LocalBoxFuture<'static, io::Result<()>> {
        // Boxed, so that the server is compiled once, with this crate: async and generic code is compiled with its
        // caller.
        Box::pin(self.serve_until_stopped(routes))
    }

    async fn serve_until_stopped(self, routes: Routes) -> io::Result<()> {
        raise_open_files();
        let draining = Draining::default();
        let listener = bind(self.http.host, self.http.port)?;
        let door = listener.try_clone()?;
        let (api, api_address) = self.api_server(listener, routes, &draining)?;
        let (metrics, metrics_address) = self.metrics_server()?;
        let mut stop_signal = StopSignal::new()?;
        log::info!("{} listening on http://{api_address}, metrics on http://{metrics_address}", self.name);
        let handles = Handles { api: api.handle(), metrics: metrics.handle(), door };
        let servers = [rt::spawn(metrics), rt::spawn(api)];

        stop_signal.received().await;
        log::info!("{} stopping", self.name);
        draining.begin();
        tokio::select! {
            result = self.drain(&draining, handles, servers) => result,
            () = stop_signal.interrupted() => {
                log::warn!("{} stopped at once, by a second signal, before all was answered", self.name);
                Ok(())
            }
        }
    }

    /// Answers what was accepted, and stops accepting after the drain delay. Returns at the end of the grace period at
    /// the latest.
    async fn drain(
        &self,
        draining: &Draining,
        handles: Handles,
        servers: [JoinHandle<io::Result<()>>; 2],
    ) -> io::Result<()> {
        sleep(self.http.drain_delay).await;
        let deadline = Instant::now() + self.http.grace_period;
        refuse_connections(&handles.api, &handles.door).await;
        // A worker that stops ends as soon as it has no connection, and with it the batches and loads that it runs for
        // requests of other workers. So all requests are answered first.
        draining.answered(deadline).await;
        // A write whose outcome is unknown may still wait for its COMMIT, and keep its barriers up.
        while self.metrics.cache.unfinished.get() > 0 && Instant::now() < deadline {
            sleep(ANSWERED_INTERVAL).await;
        }
        handles.metrics.stop(false).await;
        if timeout_at(deadline.into(), handles.api.stop(true)).await.is_err() {
            // A worker checks only once a second whether its connections have ended.
            if draining.all_is_answered() {
                log::info!("{} stopped", self.name);
            } else {
                log::warn!("{} stopped at the end of the grace period, before all was answered", self.name);
            }
            return Ok(());
        }
        for server in servers {
            server.await.map_err(io::Error::other)??;
        }
        log::info!("{} stopped", self.name);
        Ok(())
    }

    /// The server of `routes`, health and documentation, and its address.
    fn api_server(
        &self,
        listener: TcpListener,
        routes: Routes,
        draining: &Draining,
    ) -> io::Result<(Server, SocketAddr)> {
        let refusals = Refusals::default();
        rt::spawn(refusals.clone().report());
        let health = Data::new(Health::new(self.name, self.readiness.clone(), draining.clone()));
        let docs = Data::new(Docs::new(&self.api, &self.guard)?);
        let guard = self.guard.clone();
        let fast_path = self.fast_path;
        let origins = self.http.origins.clone();
        let path_prefix = self.path_prefix.clone();
        let metrics = self.metrics.clone();
        let draining = draining.clone();
        let app = move || {
            // Each worker's own: a count that all share would pass from core to core with each request.
            let telemetry = Telemetry::new(
                guard.clone(),
                fast_path,
                origins.clone(),
                path_prefix.clone(),
                metrics.clone(),
                draining.clone(),
                refusals.clone(),
            );
            App::new()
                .app_data(health.clone())
                .app_data(docs.clone())
                .wrap(telemetry)
                .configure(|config| routes(config))
                .configure(health::routes)
                .configure(docs::routes)
                .default_service(web::to(HttpResponse::NotFound))
        };
        let workers = match self.http.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let server = Server::build()
            .workers(workers)
            .max_concurrent_connections(self.http.max_connections.div_ceil(workers))
            .shutdown_timeout(self.http.grace_period.as_secs_f64().ceil() as u64)
            .disable_signals();
        let address = listener.local_addr()?;
        let stop = server.graceful_shutdown_signal();
        // As actix-web's own `HttpServer` does it, but for the stream.
        let server = server.listen(self.name, listener, move || {
            let stop = stop.clone();
            let http = HttpService::build()
                .client_request_timeout(HEAD_TIMEOUT)
                .client_disconnect_timeout(LINGER)
                .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
                .graceful_shutdown_signal(move || {
                    let stop = stop.clone();
                    async move { stop.notified().await }
                })
                .local_addr(address)
                .on_connect_ext(|stream: &ClientStream, data| {
                    idle::watch(&stream.connection, KEEP_ALIVE + HEAD_TIMEOUT);
                    data.insert(stream.connection.clone());
                })
                .finish(map_config(app(), |()| AppConfig::default()));
            let accept = |stream: TcpStream| async move {
                let client = stream.peer_addr().ok();
                Ok((ClientStream::from(stream), Protocol::Http1, client))
            };
            fn_service(accept).and_then(http)
        })?;
        Ok((server.run(), address))
    }

    /// The server of `/metrics`, and its address.
    fn metrics_server(&self) -> io::Result<(Server, SocketAddr)> {
        let listener = bind(self.http.metrics_host, self.http.metrics_port)?;
        let metrics = Data::new(self.metrics.clone());
        let server = HttpServer::new(move || {
            let metrics = web::resource("/metrics").app_data(metrics.clone()).get(metrics_text);
            App::new().wrap(from_fn(close_upgrades)).service(metrics)
        });
        let server = server
            .workers(1)
            .max_connections(METRICS_CONNECTIONS)
            .shutdown_timeout(0)
            .disable_signals()
            .listen(listener)?;
        let address = server.addrs()[0];
        Ok((server.run(), address))
    }
}

/// What the servers are stopped by.
struct Handles {
    api: ServerHandle,
    metrics: ServerHandle,
    /// The API's listener.
    door: TcpListener,
}

/// SIGTERM and SIGINT.
struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for SIGINT, which Ctrl-C at a terminal sends.
    async fn interrupted(&mut self) {
        self.interrupt.recv().await;
    }
}

fn bind(host: IpAddr, port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((host, port)).and_then(|listener| {
        listen(&listener, BACKLOG)?;
        Ok(listener)
    });
    // The system's message does not say which of the two ports it is about.
    listener.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", SocketAddr::new(host, port)))
    })
}

/// Stops accepting. Clients that connect from now on are refused at once.
async fn refuse_connections(api: &ServerHandle, door: &TcpListener) {
    api.pause().await;
    // Time in which the thread that accepts does pause, and hands on what it has accepted.
    sleep(ANSWERED_INTERVAL).await;
    // Also shut the listener down: while it is only paused, the kernel accepts connections that are never served. (On
    // systems that cannot shut a listener down, they wait.)
    let _ = shutdown(door, Shutdown::Read);
}

/// Says that the connection ends with the answer to a request that asks for an upgrade.
async fn close_upgrades(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let mut response = next.call(request).await?;
    if asks_for_upgrade(response.request()) {
        close_after(&mut response);
    }
    Ok(response)
}

async fn metrics_text(metrics: Data<Metrics>) -> HttpResponse {
    match metrics.text() {
        Ok(text) => HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text),
        Err(error) => {
            log::error!("metrics cannot be written: {error}");
            HttpResponse::InternalServerError().finish()
        }
    }
}

/// Raises the limit of open files to the hard limit: shells start processes with 1,024, fewer than the connections.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}
