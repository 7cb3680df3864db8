//! Faults of the paths between the services and their stores.

use std::thread::sleep;
use std::time::Duration;

use devstack::Direction;
use rand::seq::IteratorRandom;

use super::{any_of, random_ms};
use crate::cluster::{Cluster, Path, Replica};

/// After how long a lost packet is sent again.
const LOST: Duration = Duration::from_millis(250);
/// How long a data-svc is isolated: mostly for longer than a grant lives (3 s), so that the others write meanwhile.
const ISOLATED_MS: (u64, u64) = (2_000, 8_000);

pub fn any_replica(cluster: &Cluster) -> &Replica {
    cluster.replicas().choose(&mut rand::rng()).expect("there are some")
}

pub fn cut(replica: &Replica, path: impl Fn(&Replica) -> &Path, time: Duration) -> String {
    let path = path(replica);
    let how = interrupt(path);
    sleep(time);
    path.repair();
    format!("of {}, {how} for {time:?}", replica.name)
}

/// Lets nothing pass: connections are reset, or there is silence.
fn interrupt(path: &Path) -> &'static str {
    if rand::random() {
        path.proxy.cut();
        "reset"
    } else {
        path.proxy.stall();
        "silent"
    }
}

pub fn delay(replica: &Replica, path: impl Fn(&Replica) -> &Path) -> String {
    let path = path(replica);
    let delay = *any_of(&[5, 15, 30, 60].map(Duration::from_millis));
    path.proxy.delay(delay);
    sleep(random_ms(200, 800));
    path.repair();
    format!("of {} by {delay:?}", replica.name)
}

pub fn reset(replica: &Replica, path: impl Fn(&Replica) -> &Path) -> String {
    let path = path(replica);
    for _ in 0..10 {
        path.proxy.reset();
        sleep(random_ms(5, 100));
    }
    format!("of {}", replica.name)
}

pub fn lose_packets(cluster: &Cluster) -> String {
    let mut where_ = Vec::new();
    for _ in 0..3 {
        let replica = any_replica(cluster);
        let (path, store) = if rand::random_bool(0.7) {
            (&replica.redis, "Redis")
        } else {
            (&replica.postgres, "PostgreSQL")
        };
        let direction = *any_of(&[Direction::ToUpstream, Direction::FromUpstream]);
        let lost = path.proxy.hold(direction, "", rand::random_range(1..20)).at_most(LOST);
        sleep(LOST + random_ms(0, 200));
        lost.cancel();
        where_.push(format!("{} {direction:?} of {store}", replica.name));
    }
    where_.join(", ")
}

pub fn isolate(cluster: &Cluster) -> String {
    let alone = any_of(&cluster.readers);
    let others = || cluster.replicas().filter(|it| it.name != alone.name);
    let how = interrupt(&alone.postgres);
    let hows: Vec<_> = others().map(|it| interrupt(&it.redis)).collect();
    let time = random_ms(ISOLATED_MS.0, ISOLATED_MS.1);
    sleep(time);
    for path in others().map(|it| &it.redis).chain([&alone.postgres]) {
        path.repair();
    }
    format!("of {}, {how} (the others from Redis: {hows:?}) for {time:?}", alone.name)
}
