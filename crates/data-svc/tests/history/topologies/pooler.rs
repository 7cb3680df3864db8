//! PgBouncer in transaction mode before PostgreSQL, whose standby is promoted.

use std::time::Duration;

use devstack::Installed;

use crate::cluster::Cluster;
use crate::faults::{POSTGRES, REDIS_BRIEF, SERVICES};
use crate::one_at_a_time;
use crate::recorder::Load;
use crate::report::Report;
use crate::runs::{double_faults, saw, standby};

/// Near copies, copies, and rows that were read and stored.
const TIERS: [&str; 3] = ["near hit", "hit", "miss, stored"];

fn is_good(report: &Report) {
    report.is_good();
    saw(report, &TIERS);
}

#[test]
fn reads_are_linearizable_through_a_pooler_when_the_standby_behind_it_is_promoted() {
    let Some(pgbouncer) = Installed::find("pgbouncer") else { return };
    let _turn = one_at_a_time();
    is_good(&standby(&Cluster::pooled(&pgbouncer), Duration::ZERO, &Load::default()));
}

#[test]
#[ignore = "two minutes, by `make topologies`"]
fn reads_are_linearizable_through_a_pooler_under_all_faults_for_minutes() {
    let Some(pgbouncer) = Installed::find("pgbouncer") else { return };
    let _turn = one_at_a_time();
    let time = Duration::from_secs(60);
    is_good(&standby(&Cluster::pooled(&pgbouncer), time, &Load::default()));
    let others = [POSTGRES, SERVICES].concat();
    let kinds = [REDIS_BRIEF, &others];
    is_good(&double_faults(
        &Cluster::pooled(&pgbouncer),
        "brief faults, pooled",
        kinds,
        time,
        &Load::default(),
    ));
}
