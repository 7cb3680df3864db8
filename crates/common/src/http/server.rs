//! The HTTP server around a service's routes: it binds, listens, reports, drains and stops.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use actix_web::http::KeepAlive;
use actix_web::rt::time::sleep;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{App, HttpResponse, HttpServer, rt};
use rustix::net::{Shutdown, listen, shutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout_at;
use utoipa::openapi::OpenApi;

use super::docs::{self, Docs};
use super::drain::{ANSWERED_INTERVAL, Draining};
use super::health::{self, Health, Readiness};
use super::idle;
use super::middleware::{Refusals, Shortcut, Watch};
use crate::config::HttpSettings;
use crate::metrics::Metrics;

/// How long the head of a connection's first request may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept: longer than the minute that most balancers keep theirs.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Connections that the kernel may hold until they are accepted.
const BACKLOG: i32 = 1024;

/// A service, ready to be served.
pub struct Service {
    /// Its name, for `/version` and the logs.
    pub name: &'static str,
    /// Where and how to listen.
    pub http: HttpSettings,
    /// Its metrics.
    pub metrics: Metrics,
    /// Tells whether it can do its work now.
    pub readiness: Readiness,
    /// Its API description.
    pub api: OpenApi,
    /// What it answers before routing, if anything.
    pub shortcut: Option<Shortcut>,
}

impl Service {
    /// Listens, and serves `routes` and what every service has beside them until SIGTERM or SIGINT.
    ///
    /// Then `/readyz` is 503 and answers say `Connection: close`; after the drain delay no connection is accepted;
    /// after the grace period, or when the last request is answered, it returns.
    ///
    /// # Errors
    /// A port that cannot be bound.
    pub async fn serve(self, routes: impl Fn(&mut ServiceConfig) + Clone + Send + 'static) -> io::Result<()> {
        raise_open_files();
        let draining = Draining::default();
        let refusals = Refusals::default();
        rt::spawn(refusals.clone().report());
        let health = Data::new(Health::new(self.name, self.readiness, draining.clone()));
        let docs = Data::new(Docs::new(&self.api)?);
        let (metrics, watched_draining) = (self.metrics.clone(), draining.clone());

        let api = HttpServer::new(move || {
            // Each worker's own: a count that all share would pass from core to core with each request.
            let watch =
                Watch::new(self.shortcut, metrics.clone(), watched_draining.clone(), refusals.clone());
            App::new()
                .app_data(health.clone())
                .app_data(docs.clone())
                .wrap(watch)
                .configure(routes.clone())
                .configure(health::routes)
                .configure(docs::routes)
                .default_service(web::to(HttpResponse::NotFound))
        });
        let workers = match self.http.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let api = api
            .workers(workers)
            .max_connections(self.http.max_connections.div_ceil(workers))
            .client_request_timeout(HEAD_TIMEOUT)
            .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
            .on_connect(|stream, data| idle::watch(stream, KEEP_ALIVE + HEAD_TIMEOUT, data))
            .shutdown_timeout(self.http.grace_period.as_secs_f64().ceil() as u64)
            .disable_signals();
        let (api, door) = TcpListener::bind((self.http.host, self.http.port))
            .and_then(|listener| {
                listen(&listener, BACKLOG)?;
                let door = listener.try_clone()?;
                Ok((api.listen(listener)?, door))
            })
            .map_err(|error| cannot_listen(self.http.host, self.http.port, &error))?;

        let metrics = self.metrics;
        let metrics = HttpServer::new(move || {
            App::new()
                .app_data(Data::new(metrics.clone()))
                .service(web::resource("/metrics").get(metrics_text))
        });
        let metrics = metrics
            .workers(1)
            .max_connections(64)
            .shutdown_timeout(0)
            .disable_signals()
            .bind((self.http.host, self.http.metrics_port))
            .map_err(|error| cannot_listen(self.http.host, self.http.metrics_port, &error))?;

        let (api_at, metrics_at) = (api.addrs()[0], metrics.addrs()[0]);
        let (api, metrics) = (api.run(), metrics.run());
        let (api_handle, metrics_handle) = (api.handle(), metrics.handle());
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        log::info!("{} listening on http://{api_at}, metrics on http://{metrics_at}", self.name);

        let metrics = rt::spawn(metrics);
        let api = rt::spawn(api);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::info!("{} stopping", self.name);
        draining.set();
        sleep(self.http.drain_delay).await;
        let end = Instant::now() + self.http.grace_period;
        // A worker that is told to stop ends as soon as it has no connection, and with it all that it does for requests of
        // others: batches and loads are shared. So all is answered first.
        api_handle.pause().await;
        // Time in which the thread that accepts does pause, with what it has accepted handed on.
        sleep(ANSWERED_INTERVAL).await;
        // A pause alone would let those who connect now wait for nothing. (Where a listener cannot be shut down, it does.)
        let _refusing = shutdown(&door, Shutdown::Read);
        draining.answered(end).await;
        metrics_handle.stop(false).await;
        if timeout_at(end.into(), api_handle.stop(true)).await.is_err() {
            // A worker looks but once a second whether its connections have ended.
            match draining.all_is_answered() {
                true => log::info!("{} stopped", self.name),
                false => log::warn!(
                    "{} stopped at the end of the grace period, before all was answered",
                    self.name
                ),
            }
            return Ok(());
        }
        for server in [api, metrics] {
            server.await.map_err(io::Error::other)??;
        }
        log::info!("{} stopped", self.name);
        Ok(())
    }
}

/// The system's message does not tell which of the two ports it is about.
fn cannot_listen(host: IpAddr, port: u16, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {}: {error}", SocketAddr::new(host, port)))
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

/// Shells start processes with 1,024 open files; the hard limit is there to be used.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}
