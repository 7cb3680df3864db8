//! data-svc is killed, or only held up, at each step of a read, while a replace is acknowledged.

use std::thread::scope;

use devstack::http;
use devstack::proxy::Held;
use devstack::testing::{get, get_with, kind};

use super::Message::{Postgres, Redis};
use super::{Fleet, Message, NOBODY, Reads, Side, Step, Victim, name_of};
use crate::{BYPASS, NO_CACHE, wait_for_a_hit};

/// A way to read, by the messages that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Reads the key and takes the lease, SELECT, fill.
    Miss,
    /// Reads the key, which holds an entry.
    Hit,
    /// With no-cache: reads the key, which holds an entry, SELECT, a fill over the entry.
    Forced,
}

use Read::{Forced, Hit, Miss};

const LEASE: Message = Redis(1);

const STEPS: [(Read, Message); 7] = [
    (Miss, LEASE),
    (Miss, Postgres(1)),
    (Miss, Redis(2)),
    (Hit, Redis(1)),
    (Forced, Redis(1)),
    (Forced, Postgres(1)),
    (Forced, Redis(2)),
];

/// What happens to the held message after the replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Released,
    /// Released after other readers have read the new user, and so have stored copies.
    Late,
    Discarded,
}

impl Fate {
    fn apply_to(self, held: Held) {
        match self {
            Self::Released | Self::Late => held.release(),
            Self::Discarded => held.discard(),
        }
    }
}

fn at_every_step(case: impl Fn(&Fleet, Read, Step, Fate)) {
    let fleet = Fleet::start();
    for (read, message) in STEPS {
        for side in [Side::Message, Side::Reply] {
            for fate in [Fate::Released, Fate::Late, Fate::Discarded] {
                case(&fleet, read, Step { message, side }, fate);
            }
        }
    }
}

/// A user, and a reader that is about to read it.
fn prepare(fleet: &Fleet, read: Read, name: &str) -> Victim {
    let victim = Victim::start(&fleet.stack, fleet.stack.data_svc(), name);
    assert_eq!(fleet.write(NOBODY, name, "old"), 201);
    if read != Miss {
        wait_for_a_hit(&fleet.readers[2], name);
    }
    victim
}

fn headers(read: Read) -> &'static [(&'static str, &'static str)] {
    if read == Forced { &[NO_CACHE] } else { &[] }
}

/// Lets the victim read, and kills it at `step`.
fn killed(victim: &Victim, read: Read, step: Step, name: &str) -> Held {
    let held = victim.hold(&step, name);
    scope(|scope| {
        let url = victim.service.url_of(&format!("/user/{name}"));
        let client = scope.spawn(move || http::try_send("GET", &url, headers(read), ""));
        held.wait();
        victim.service.kill();
        assert!(client.join().expect("no panic").is_err(), "it was not answered");
    });
    held
}

/// Replaces the user. Every read that starts from now on must return the new one.
fn replaced<'a>(fleet: &'a Fleet, name: &'a str, fate: Fate) -> Reads<'a> {
    let states = &["old", "new"];
    let mut reads = Reads { readers: fleet.readers.iter().collect(), name, states, possible: 0..=1 };
    assert_eq!(fleet.write("old", name, "new"), 200);
    reads.must_be("new");
    if fate == Fate::Late {
        reads.look();
    }
    reads
}

fn kill_at(fleet: &Fleet, read: Read, step: Step, fate: Fate) {
    let name = &name_of((read, step.message, step.side, fate));
    let victim = prepare(fleet, read, name);
    let held = killed(&victim, read, step, name);
    let mut reads = replaced(fleet, name, fate);
    fate.apply_to(held);
    victim.wait_until_forgotten(&fleet.stack, || ());
    // The replace has removed every lease that was there before it, but not one that arrives later. Where a copy was, it
    // has left its own, and a lease takes nothing's place.
    let left = (step.message, step.side, fate) == (LEASE, Side::Message, Fate::Released) && read == Miss;
    assert_eq!(kind(&fleet.stack, name) == "L", left);
    if left {
        assert_eq!(get(&fleet.readers[0], name).header("cache-status"), Some(BYPASS));
    }
    reads.look();
    fleet.expire(name, "L");
    reads.look_closely();
}

fn hold_up_at(fleet: &Fleet, read: Read, step: Step, fate: Fate) {
    let name = &name_of((read, step.message, step.side, fate));
    let victim = prepare(fleet, read, name);
    let held = victim.hold(&step, name);
    let mut reads = scope(|scope| {
        let client = scope.spawn(|| get_with(&victim.service, name, headers(read)));
        held.wait();
        let reads = replaced(fleet, name, fate);
        fate.apply_to(held);
        // This read began before the replace was acknowledged, so it may return the old user. Later reads may not.
        let answer = client.join().expect("answered");
        assert!(["old", "new"].contains(&answer.json()["info"].as_str().unwrap_or_default()));
        reads
    });
    reads.readers.push(&victim.service);
    reads.look_closely();
}

#[test]
fn a_reader_killed_at_any_step_leaves_no_old_user_and_blocks_no_other_reader() {
    at_every_step(|fleet, read, step, fate| {
        // A reply to a dead reader is lost in any case.
        if step.side == Side::Message || fate == Fate::Released {
            kill_at(fleet, read, step, fate);
        }
    });
}

#[test]
fn a_reader_held_up_at_any_step_leaves_no_old_user_for_later_reads() {
    at_every_step(hold_up_at);
}

#[test]
fn the_lease_of_a_dead_reader_is_bypassed_until_it_expires() {
    let fleet = Fleet::start();
    let victim = prepare(&fleet, Miss, "ann");
    let _held = killed(&victim, Miss, Step { message: Postgres(1), side: Side::Message }, "ann");
    for reader in &fleet.readers {
        assert_eq!(get(reader, "ann").header("cache-status"), Some(BYPASS));
    }
    fleet.expire("ann", "L");
    fleet.warm("ann");
}
