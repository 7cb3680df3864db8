//! The same API, as a strong engineer would write it by hand in an afternoon: axum, prepared statements through a pool,
//! one multiplexed Redis connection, finished answers in the cache. No coherence, no metrics, no time-outs.
//!
//! Settings: `PORT`, `DATABASE_URL` and `REDIS_URL`.

use std::env;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, RecyclingMethod};
use redis::aio::ConnectionManager;
use redis::{AsyncCommands, RedisError};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections to PostgreSQL: as many as user-svc and data-svc have together.
const CONNECTIONS: usize = 20;
/// The services' default.
const TTL_SECONDS: u64 = 300;

#[derive(Clone)]
struct Stores {
    postgres: Pool,
    redis: ConnectionManager,
}

/// The store that failed. Either is a 500.
enum Failure {
    Postgres,
    Redis,
}

impl From<PoolError> for Failure {
    fn from(_: PoolError) -> Self {
        Self::Postgres
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(_: tokio_postgres::Error) -> Self {
        Self::Postgres
    }
}

impl From<RedisError> for Failure {
    fn from(_: RedisError) -> Self {
        Self::Redis
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let text = match self {
            Self::Postgres => "PostgreSQL failed",
            Self::Redis => "Redis failed",
        };
        (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

#[derive(Deserialize, Serialize)]
struct NewUser {
    name: String,
    info: String,
}

#[derive(Deserialize)]
struct NewInfo {
    info: String,
}

#[derive(Serialize)]
struct FoundUser<'a> {
    name: &'a str,
    info: &'a str,
    cache_hit: bool,
}

impl FoundUser<'_> {
    fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings are JSON")
    }
}

fn fits(name: &str, info: &str) -> bool {
    (1..=128).contains(&name.len()) && (1..=16_384).contains(&info.len())
}

fn key(name: &str) -> String {
    format!("user:{name}")
}

async fn register(State(stores): State<Stores>, Json(user): Json<NewUser>) -> Result<Response, Failure> {
    if !fits(&user.name, &user.info) {
        return Ok(StatusCode::BAD_REQUEST.into_response());
    }
    let client = stores.postgres.get().await?;
    let insert = "INSERT INTO users (name, info) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let insert = client.prepare_cached(insert).await?;
    let created = client.execute(&insert, &[&user.name, &user.info]).await?;
    Ok(match created {
        0 => StatusCode::CONFLICT.into_response(),
        _ => (StatusCode::CREATED, Json(user)).into_response(),
    })
}

async fn replace(
    State(mut stores): State<Stores>,
    Path(name): Path<String>,
    Json(NewInfo { info }): Json<NewInfo>,
) -> Result<Response, Failure> {
    if !fits(&name, &info) {
        return Ok(StatusCode::BAD_REQUEST.into_response());
    }
    let client = stores.postgres.get().await?;
    let update = "UPDATE users SET info = $2, updated_at = now() WHERE name = $1";
    let update = client.prepare_cached(update).await?;
    let updated = client.execute(&update, &[&name, &info]).await?;
    // Other requests may use the connection while Redis removes the copy.
    drop(client);
    if updated == 0 {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    let () = stores.redis.del(key(&name)).await?;
    Ok(Json(NewUser { name, info }).into_response())
}

async fn get_user(State(mut stores): State<Stores>, Path(name): Path<String>) -> Result<Response, Failure> {
    let key = key(&name);
    let cached: Option<Vec<u8>> = stores.redis.get(&key).await?;
    if let Some(json) = cached {
        return Ok(answer(json));
    }
    let client = stores.postgres.get().await?;
    let select = client.prepare_cached("SELECT info FROM users WHERE name = $1").await?;
    let row = client.query_opt(&select, &[&name]).await?;
    // Other requests may use the connection while Redis stores the copy.
    drop(client);
    let Some(row) = row else { return Ok(StatusCode::NOT_FOUND.into_response()) };
    let user = FoundUser { name: &name, info: row.try_get(0)?, cache_hit: true };
    let () = stores.redis.set_ex(&key, user.json(), TTL_SECONDS).await?;
    Ok(answer(FoundUser { cache_hit: false, ..user }.json()))
}

fn answer(json: Vec<u8>) -> Response {
    ([(CONTENT_TYPE, "application/json")], json).into_response()
}

fn setting(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

#[tokio::main]
async fn main() {
    let database = setting("DATABASE_URL").parse().expect("DATABASE_URL is a URL");
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(database, NoTls, recycling);
    let postgres = Pool::builder(manager).max_size(CONNECTIONS).build().expect("no time-outs, no runtime");
    let client = redis::Client::open(setting("REDIS_URL")).expect("REDIS_URL is a URL");
    let redis = ConnectionManager::new(client).await.expect("Redis answers");
    let routes = Router::new()
        .route("/register", post(register))
        .route("/user/{name}", get(get_user).put(replace))
        .route("/readyz", get(StatusCode::OK))
        .with_state(Stores { postgres, redis });
    let listener =
        TcpListener::bind(format!("127.0.0.1:{}", setting("PORT"))).await.expect("the port is free");
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("a socket takes its options"));
    axum::serve(listener, routes).await.expect("serves until it is killed");
}
