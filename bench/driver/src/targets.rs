//! The programs that are measured: our services, their peers, and the ceiling.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use devstack::supervise::{Supervised, supervised};
use devstack::{Signal, free_port, http};
use serde::{Deserialize, Serialize};

use crate::names::{Requests, Series, info};
use crate::stores::Stores;
use crate::usage;

/// How long a start may take. Under valgrind it takes many times longer than usual.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The program that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// user-svc and data-svc.
    Ours,
    /// bench/axum-peer.
    Axum,
    /// bench/flask-peer.
    Flask,
    /// bench/ceiling.
    Ceiling,
    /// bench/ceiling with its static body.
    Bare,
    /// user-svc and data-svc of another build, in the folder that `BENCH_BEFORE` names.
    Before,
    /// user-svc and data-svc, which ask for a token.
    Token,
}

impl Kind {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ours => "ours",
            Kind::Axum => "axum",
            Kind::Flask => "flask",
            Kind::Ceiling => "ceiling",
            Kind::Bare => "bare",
            Kind::Before => "before",
            Kind::Token => "token",
        }
    }

    fn redis_url(self, stores: &Stores) -> String {
        stores.redis_url(self as u32 + 1)
    }
}

/// A running target.
#[derive(Debug)]
pub struct Target {
    /// The program.
    pub kind: Kind,
    /// The address that registers users.
    pub user: SocketAddr,
    /// The address that reads them.
    pub data: SocketAddr,
    servers: Vec<Server>,
}

impl Target {
    /// Starts `kind` anew with empty caches, and returns when it is ready. The ceiling sends infos of `info_bytes`.
    pub fn start(kind: Kind, stores: &Stores, info_bytes: usize) -> Target {
        let launches = match kind {
            Kind::Ours => vec![ours("user-svc", stores), ours("data-svc", stores)],
            Kind::Axum => vec![axum(stores)],
            Kind::Flask => vec![flask(stores)],
            Kind::Ceiling | Kind::Bare => vec![ceiling(info_bytes)],
            Kind::Before => vec![before("user-svc", stores), before("data-svc", stores)],
            Kind::Token => vec![with_tokens("user-svc", stores), with_tokens("data-svc", stores)],
        };
        Target::of(kind, stores, launches)
    }

    /// Starts our services with one more setting.
    pub fn ours_with(stores: &Stores, name: &str, value: &str) -> Target {
        let launches = ["user-svc", "data-svc"].map(|service| ours(service, stores).env(name, value));
        Target::of(Kind::Ours, stores, launches.into())
    }

    /// The first of `launches` writes, the last one reads.
    fn of(kind: Kind, stores: &Stores, launches: Vec<Launch>) -> Target {
        stores.settle();
        let servers: Vec<Server> = launches.into_iter().map(Launch::start).collect();
        let user = servers[0].address;
        let data = servers[servers.len() - 1].address;
        Target { kind, user, data, servers }
    }

    /// The same requests, as it lets them in.
    pub fn admit(&self, requests: Requests) -> Requests {
        if self.kind == Kind::Token { requests.with_token(&token().0) } else { requests }
    }

    /// Processor time used so far by all its processes.
    pub fn cpu(&self) -> Duration {
        self.servers.iter().map(|server| usage::cpu(server.guard.pid())).sum()
    }

    /// How long all its processes were ready to run and had no processor.
    pub fn wait(&self) -> Duration {
        self.servers.iter().map(|server| usage::wait(server.guard.pid())).sum()
    }

    /// The peak memory of the larger of its services, in MiB.
    pub fn peak_mib(&self) -> f64 {
        self.servers.iter().map(|server| usage::peak_mib(server.guard.pid())).fold(0.0, f64::max)
    }
}

/// A program that listens. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    /// From exec to the first 200 of `/readyz`.
    pub ready_after: Duration,
    /// The process.
    pub guard: Supervised,
}

/// A program about to start, and the port that it is given.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    port: u16,
}

impl Launch {
    /// A program that listens on `PORT`.
    pub fn new(program: &Path) -> Launch {
        let port = free_port();
        let mut command = supervised(Signal::KILL, program);
        // A folder without a .env, which the services would read.
        command.env("PORT", port.to_string()).current_dir("/");
        Launch { command, port }
    }

    /// Sets a setting.
    pub fn env(mut self, name: &str, value: &str) -> Launch {
        self.command.env(name, value);
        self
    }

    /// Adds arguments.
    pub fn arguments(mut self, arguments: &[&str]) -> Launch {
        self.command.args(arguments);
        self
    }

    /// Starts it and waits until it is ready. Panics with its log if it ends before or takes too long.
    pub fn start(self) -> Server {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let url = format!("http://{address}/readyz");
        let began = Instant::now();
        let guard = Supervised::start(self.command);
        while !http::try_send("GET", &url, &[], "").is_ok_and(|answer| answer.status == 200) {
            let alive = guard.status().is_none() && began.elapsed() < START_TIMEOUT;
            assert!(alive, "{url} is not ready:\n{}", guard.log().text());
            // Seldom, if the start takes long, as under valgrind: each look is work for the program.
            sleep(Duration::from_millis(1).max(began.elapsed() / 50));
        }
        Server { address, ready_after: began.elapsed(), guard }
    }
}

/// The path of one of our own programs: all are built into one folder.
pub fn release(name: &str) -> PathBuf {
    let path = env::current_exe().expect("a program knows its own path").with_file_name(name);
    assert!(path.is_file(), "{} is missing: scripts/bench builds it", path.display());
    path
}

/// One of our two services.
pub fn ours(name: &str, stores: &Stores) -> Launch {
    with_stores(Kind::Ours, stores, &release(name)).env("METRICS_PORT", "0")
}

/// One of our two services, which asks for the token of [`token`].
fn with_tokens(name: &str, stores: &Stores) -> Launch {
    let launch = with_stores(Kind::Token, stores, &release(name)).env("METRICS_PORT", "0");
    launch.env("API_TOKENS", &token().1)
}

/// A token for everything, and its line in the token list.
pub fn token() -> &'static (String, String) {
    static TOKEN: LazyLock<(String, String)> = LazyLock::new(|| {
        let mut new = Command::new(release("user-svc"));
        new.args(["token", "new", "--name", "bench", "--scopes", "admin"]).current_dir("/");
        let made = new.output().expect("user-svc runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (text(&made.stdout), text(&made.stderr))
    });
    &TOKEN
}

/// One of our two services in another build.
fn before(name: &str, stores: &Stores) -> Launch {
    let folder = env::var("BENCH_BEFORE").expect("BENCH_BEFORE names the folder of another build's programs");
    with_stores(Kind::Before, stores, &Path::new(&folder).join(name)).env("METRICS_PORT", "0")
}

/// The axum peer.
pub fn axum(stores: &Stores) -> Launch {
    with_stores(Kind::Axum, stores, &release("axum-peer"))
}

/// A program with stores of its own.
pub fn with_stores(kind: Kind, stores: &Stores, program: &Path) -> Launch {
    let database = stores.database(kind.name());
    Launch::new(program).env("DATABASE_URL", &database).env("REDIS_URL", &kind.redis_url(stores))
}

fn ceiling(info_bytes: usize) -> Launch {
    let name = Series::Seeded.name(0);
    let body = format!(r#"{{"name":"{name}","info":"{}","cache_hit":true}}"#, info(&name, info_bytes));
    Launch::new(&release("ceiling")).env("BODY", &body)
}

/// The Flask peer. gunicorn takes no port from its environment.
pub fn flask(stores: &Stores) -> Launch {
    let gunicorn = release("bench").with_file_name("../flask-venv/bin/gunicorn");
    let launch = with_stores(Kind::Flask, stores, &gunicorn);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../flask-peer");
    let bind = format!("127.0.0.1:{}", launch.port);
    let arguments = ["--workers", "2", "--threads", "8", "--keep-alive", "75", "--chdir", folder];
    launch.arguments(&arguments).arguments(&["--bind", &bind, "app:app"])
}
