//! What the protocol does not promise: reads are older than an acknowledged write there, and for how long is measured.

use std::thread::sleep;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::faults::Log;
use crate::faults::postgres::refusing_server;
use crate::one_at_a_time;
use crate::recorder::{Load, record};
use crate::report::{Promise, Report, stalest_of};
use crate::runs::{GRANT, SLACK};

/// The TTL of entries: some are still there when the writers do without Redis, which is after the life of a grant.
const TTL: Duration = Duration::from_secs(6);

/// A double fault: writers reach PostgreSQL and not Redis, and readers reach Redis and not PostgreSQL. Both readers go on
/// with their last grant: one is refused, the other has `CACHE_WITHOUT_POSTGRES`.
#[test]
fn readers_that_take_a_postgresql_for_down_that_others_write_to_are_stale_for_the_ttl_at_most() {
    let _turn = one_at_a_time();
    let ttl = format!("{}s", TTL.as_secs());
    let ttls = [("CACHE_TTL", ttl.as_str()), ("CACHE_ABSENT_TTL", &ttl)];
    let told = [&ttls[..], &[("CACHE_WITHOUT_POSTGRES", "true")]].concat();
    let cluster = Cluster::start([&told, &ttls]);
    let [told, refused] = [&cluster.readers[0], &cluster.readers[1]];
    // Names are in use for long enough to be read when they are stale.
    let load = Load { rotation: Duration::from_secs(10), ..Load::default() };
    let recording = record(&cluster, &load, || {
        sleep(Duration::from_secs(1));
        told.postgres.proxy.stall();
        refused.postgres.lead_to(refusing_server());
        for writer in &cluster.writers {
            writer.redis.proxy.cut();
        }
        sleep(TTL + SLACK);
        for writer in &cluster.writers {
            writer.redis.repair();
        }
        refused.postgres.lead_to(cluster.stores.postgres().port());
        told.postgres.repair();
        sleep(Duration::from_secs(1));
    });
    let report =
        Report::of("PostgreSQL taken for down", Promise::Bounded, &cluster, &recording, &Log::default());
    report.good(&cluster, &recording).is_good();
    for reader in [told, refused] {
        let stalest = stalest_of(reader.name, &recording);
        println!("{}: {stalest:?}", reader.name);
        assert!(stalest <= TTL - GRANT + SLACK, "{} was stale for {stalest:?}", reader.name);
        assert!(!stalest.is_zero(), "{} was never stale: the fault did not hit", reader.name);
    }
}
