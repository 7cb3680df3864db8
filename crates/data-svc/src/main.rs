//! `data-svc`: serves users from PostgreSQL through a Redis cache-aside.

use common::http::health;
use common::start;
use data_svc::Config;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    start::main(data_svc::command(), &data_svc::settings(), Config::read, |command, config| match command {
        Some(("health", _)) => health::check(&config.http),
        Some(("purge", arguments)) => data_svc::purge(&config.cache, arguments),
        _ => data_svc::serve(config),
    })
}
