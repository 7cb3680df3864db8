//! The fastest route that actix-web can offer: `/user/{name}` sends a prepared answer with the head of a near hit of
//! data-svc, and `/bare` sends a static body. Nothing is looked up, counted or logged. (data-svc itself answers near hits
//! before routing.)
//!
//! Settings: `PORT`, and `BODY`, the prepared body.

use std::env;
use std::io;
use std::thread::available_parallelism;
use std::time::Duration;

use actix_web::http::KeepAlive;
use actix_web::http::header::{
    CACHE_CONTROL, CACHE_STATUS, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpResponse, HttpServer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The head of a near hit, without the fields that actix-web adds (content-length, date). The id is as long as a real
/// one.
const HEAD: [(HeaderName, &str); 6] = [
    (CACHE_STATUS, "data-svc; hit; ttl=300; detail=near"),
    (CACHE_CONTROL, "private, no-cache"),
    (ETAG, r#"W/"5bd36ab5ac6f79d25c99ff9a63e6b6d5""#),
    (CONTENT_TYPE, "application/json"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (HeaderName::from_static("x-request-id"), "0123456789abcdef0123456789abcdef"),
];

async fn prepared(body: Data<Bytes>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    for (name, value) in HEAD {
        response.insert_header((name, HeaderValue::from_static(value)));
    }
    response.body(Bytes::clone(&body))
}

async fn bare() -> &'static str {
    "bare"
}

#[actix_web::main]
async fn main() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).expect("PORT is a number");
    let body = Data::new(Bytes::from(env::var("BODY").expect("BODY is set")));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(body.clone())
            .service(web::resource("/user/{name}").get(prepared))
            .service(web::resource("/bare").get(bare))
            .service(web::resource("/readyz").get(bare))
    });
    // The values of data-svc.
    let keep_alive = KeepAlive::Timeout(Duration::from_secs(75));
    let server = server.workers(available_parallelism().map_or(1, usize::from)).keep_alive(keep_alive);
    server.bind(("127.0.0.1", port))?.run().await
}
