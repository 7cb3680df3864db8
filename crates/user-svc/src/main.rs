//! `user-svc`: registers users in PostgreSQL.

use common::http::health;
use common::{database, start};
use user_svc::Config;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    start::main(user_svc::command(), &user_svc::settings(), Config::read, |command, config| match command {
        Some(("health", _)) => health::check(&config.http),
        Some(("migrate", _)) => database::run_once(&config.database),
        Some(("purge", _)) => database::purge_all(&config.database),
        Some(("token", arguments)) => user_svc::token::run(arguments, &config.access),
        _ => user_svc::serve(config),
    })
}
