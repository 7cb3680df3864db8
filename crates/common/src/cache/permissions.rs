//! What the services need the right to do in Redis: checked when they connect, so that a right that is missing is named
//! once, and no request finds out.

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script};

use super::EDITION;
use super::acks::MEMBERS;

/// The commands that both services need, those of scripts among them, on their keys and channels. `docs/operations.md`
/// has the line that allows them.
pub fn needed(invalidations: &str, acks: &str) -> Vec<String> {
    let plain = ["INFO", "PING", "EVALSHA x 0", "SCRIPT LOAD x"].map(str::to_owned);
    let strings = ["GET", "GETRANGE 0 0", "SET x", "DEL", "TYPE", "PEXPIRE 1"];
    let hash = ["HGETALL", "HGET x", "HSET x 1", "HSETNX x 1", "HINCRBY x 1", "HDEL x"];
    let on_channels = ["PUBLISH x", "SUBSCRIBE"];
    let on = |object: &str, command: &str| match command.split_once(' ') {
        Some((name, rest)) => format!("{name} {object} {rest}"),
        None => format!("{command} {object}"),
    };
    let key = [EDITION, "probe"].concat();
    let mut commands = Vec::from(plain);
    commands.extend(strings.map(|command| on(&key, command)));
    commands.extend(hash.map(|command| on(MEMBERS, command)));
    commands.extend(on_channels.map(|command| on(invalidations, command)));
    commands.push(format!("PUBSUB NUMSUB {invalidations}"));
    commands.extend(on_channels.map(|command| on(acks, command)));
    commands
}

/// Returns those of `commands` that the user of `connection` may not run.
///
/// # Errors
/// Redis', also if scripts are what it may not run.
pub async fn refused(
    connection: &mut MultiplexedConnection,
    commands: &[String],
) -> RedisResult<Vec<String>> {
    let script = Script::new(include_str!("permissions.lua"));
    let mut call = script.prepare_invoke();
    for command in commands {
        call.arg(command);
    }
    call.invoke_async(connection).await
}
