//! Faults of the messages to near caches, of their acks, and of the list of near members.

use std::thread::sleep;
use std::time::Duration;

use devstack::Direction;

use super::{any_of, random_ms};
use crate::cluster::{Cluster, Path, Replica};

/// How often each fault is repeated.
const TIMES: usize = 4;
/// How long to wait for a message. There may be none: most of the faults that go on at the same time stop writes.
const PATIENCE: Duration = Duration::from_millis(100);

pub fn hold_acks(cluster: &Cluster) -> String {
    hold(any_of(&cluster.readers), |it| &it.redis, Direction::ToUpstream, "2:acks:")
}

pub fn hold_invalidations(cluster: &Cluster) -> String {
    hold(any_of(&cluster.readers), |it| &it.redis, Direction::FromUpstream, "2:invalidations:")
}

pub fn hold_acks_from_writer(cluster: &Cluster) -> String {
    hold(any_of(&cluster.writers), |it| &it.redis, Direction::FromUpstream, "2:acks:")
}

/// Holds some messages that contain `needle`, and what follows them on their connection: for less than a proof holds, or
/// for longer. Then they go on, or are lost with their connection.
fn hold(replica: &Replica, path: impl Fn(&Replica) -> &Path, direction: Direction, needle: &str) -> String {
    let mut lost = 0;
    for _ in 0..TIMES {
        let held = path(replica).proxy.hold(direction, needle, 1);
        let has_come = held.has_come_within(PATIENCE);
        sleep(random_ms(5, 100));
        if has_come && rand::random() {
            held.discard();
            lost += 1;
        } else {
            held.cancel();
        }
        // The connection of one that was lost is back after a quarter of a second.
        sleep(random_ms(5, 100));
    }
    format!("of {}, {lost} of {TIMES} lost", replica.name)
}

/// As eviction does.
pub fn lose(cluster: &Cluster) -> String {
    for _ in 0..TIMES {
        cluster.stores.redis().cli(0, &["DEL", "2:members"]);
        sleep(random_ms(5, 150));
    }
    format!("{TIMES} times")
}
