//! Faults of PostgreSQL itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread::{sleep, spawn};
use std::time::Duration;

use devstack::Postgres;

use super::{any_of, random_ms};
use crate::cluster::Cluster;

/// Ends the backends for which CONDITION holds, again and again for half a second.
const TERMINATE: &str = "\
DO $$ BEGIN FOR round IN 1..100 LOOP
  PERFORM pg_stat_clear_snapshot();
  PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND (CONDITION);
  PERFORM pg_sleep(0.005);
END LOOP; END $$";

pub fn terminate(cluster: &Cluster, condition: &str) -> String {
    // Another fault may have stopped PostgreSQL.
    match cluster.stores.try_sql(&TERMINATE.replace("CONDITION", condition)) {
        Ok(_) => String::new(),
        Err(error) => error.lines().next().unwrap_or_default().to_owned(),
    }
}

pub fn freeze(postgres: &Postgres, time: Duration) -> String {
    postgres.freeze();
    sleep(time);
    postgres.thaw();
    format!("for {time:?}")
}

pub fn kill(cluster: &Cluster) -> String {
    let postgres = cluster.stores.postgres();
    postgres.kill();
    sleep(random_ms(0, 300));
    postgres.restart();
    String::new()
}

pub fn detach_standby(cluster: &Cluster) -> String {
    let (primary, standby) = (cluster.stores.postgres(), cluster.stores.standby());
    standby.detach(&primary);
    // Some times for longer than a request waits.
    let (from, to) = *any_of(&[(50, 500), (2_200, 4_000)]);
    let time = random_ms(from, to);
    sleep(time);
    let held = primary.held_commits();
    standby.attach();
    format!("for {time:?}, with {held} COMMITs held")
}

/// Some times the standby has been cut off a moment before, as when the primary's machine fails slowly: what it lacks was
/// neither acknowledged nor shown.
pub fn promote(cluster: &Cluster) -> String {
    let (primary, standby) = (cluster.stores.postgres(), cluster.stores.standby());
    let mut what = "of the standby";
    if rand::random() {
        standby.detach(&primary);
        sleep(random_ms(20, 1_000));
        what = "of the standby, which was detached before";
    }
    cluster.stores.promote();
    for replica in cluster.replicas() {
        replica.postgres.lead_to(cluster.stores.database_port());
    }
    what.into()
}

/// Starts a server that answers every client as a PostgreSQL does that has not started yet. Returns its port. It ends with
/// the process.
pub fn refusing_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("some port is free");
    let port = listener.local_addr().expect("it is bound").port();
    spawn(move || {
        for client in listener.incoming().flatten() {
            // The client may have gone.
            let _ = refuse(client);
        }
    });
    port
}

/// Answers the first message. A client may ask for encryption before.
fn refuse(mut client: TcpStream) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut head = [0; 8];
    client.read_exact(&mut head)?;
    while matches!(head, [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f | 0x30]) {
        client.write_all(b"N")?;
        client.read_exact(&mut head)?;
    }
    let [a, b, c, d, ..] = head;
    let length = u64::from(u32::from_be_bytes([a, b, c, d]));
    std::io::copy(&mut (&client).take(length.saturating_sub(8)), &mut std::io::sink())?;
    let fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
    client.write_all(b"E")?;
    client.write_all(&(fields.len() as u32 + 4).to_be_bytes())?;
    client.write_all(fields)
}
