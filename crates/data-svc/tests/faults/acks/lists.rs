//! The list of near members is lost, put back, or incomplete at the moment of a write. In each test a replica is cut off from
//! Redis just before that, with a near copy that it may use for 50 ms: a write that does not wait for it is followed by the
//! old user.

use std::thread::{scope, sleep};
use std::time::Duration;

use devstack::testing::wait_until;
use devstack::{Direction, Redis};

use super::{Reader, Writer};
use crate::{wait_for_a_hit, without_near};

/// Where a list is saved that is put back later.
const SAVED: &str = "2:saved";
const ROUNDS: u32 = 10;

/// A write to ann while `lose` has just changed the list, and a replica that hears nothing of either has a near copy.
fn after(lose: impl Fn(&Redis), prepare: impl Fn(&Writer)) {
    let writer = Writer::start();
    let reader = Reader::start(&writer);
    writer.register("ann", "0");
    for round in 1..=ROUNDS {
        wait_until("it is a member", || writer.members().len() == 1);
        // The list is known for long enough: without the loss, the write would trust it.
        writer.replace("ann", "before");
        prepare(&writer);
        let roll = writer.roll();
        reader.warm("ann");
        reader.link.stall();
        lose(&writer.redis);
        writer.replace("ann", &round.to_string());
        reader.must_read("ann", &round.to_string());
        assert_ne!(writer.roll(), roll, "what others know of the list is not trusted either");
        reader.link.restore();
    }
}

#[test]
fn after_flushall_no_write_trusts_the_list_at_once() {
    let flush = |redis: &Redis| drop(redis.cli(0, &["FLUSHALL"]));
    after(flush, |_| ());
}

#[test]
fn after_the_list_was_evicted_no_write_trusts_it_at_once() {
    let delete = |redis: &Redis| drop(redis.cli(0, &["DEL", "2:members"]));
    after(delete, |_| ());
}

#[test]
fn a_list_that_was_put_back_from_an_older_state_is_not_trusted_although_its_name_is_the_same() {
    let put_back = |redis: &Redis| drop(redis.cli(0, &["COPY", SAVED, "2:members", "REPLACE"]));
    after(put_back, |writer| {
        writer.redis.cli(0, &["COPY", "2:members", SAVED, "REPLACE"]);
        for member in writer.members() {
            writer.redis.cli(0, &["HDEL", SAVED, &member]);
        }
        // These are counted in the list that is lost.
        for info in ["counted", "counted, too"] {
            writer.replace("ann", info);
        }
    });
}

#[test]
fn a_near_cache_that_became_a_member_just_before_a_write_is_waited_for() {
    let writer = Writer::start();
    let filler = without_near(writer.data_svc()).start();
    writer.register("ann", "0");
    for round in 1..=5 {
        // The list is known by now, and has no members.
        writer.replace("ann", "before");
        sleep(Duration::from_millis(100));
        writer.replace("ann", "before");
        // While the write is under way, no reader stores a copy in Redis.
        wait_for_a_hit(&filler, "ann");
        let held = writer.link.hold(Direction::ToUpstream, "2:user:{ann}", 1);
        let info = round.to_string();
        let reader = scope(|scope| {
            let client = scope.spawn(|| writer.replace("ann", &info));
            held.wait();
            let reader = Reader::start(&writer);
            reader.warm("ann");
            reader.link.stall();
            held.release();
            client.join().expect("replaced");
            reader
        });
        reader.must_read("ann", &info);
        drop(reader);
        wait_until("it is dropped", || {
            writer.replace("ann", "after");
            writer.members().is_empty()
        });
    }
}

#[test]
fn the_next_write_waits_for_a_replica_that_was_dropped_although_it_had_acknowledged() {
    let writer = Writer::start();
    let reader = Reader::start(&writer);
    for name in ["ann", "bob"] {
        writer.register(name, "0");
    }
    let mut dropped = 0;
    for round in 1..=ROUNDS {
        let info = round.to_string();
        wait_until("it is a member", || writer.members().len() == 1);
        wait_until("acks are heard", || {
            let missed = writer.metric("acks_missed_total");
            // It also removes the lease that the replica has sent and never filled, which would stand for 3 s.
            writer.replace("ann", "before");
            writer.metric("acks_missed_total") == missed
        });
        let [member] = writer.members().into_iter().collect::<Vec<_>>().try_into().expect("one");
        reader.warm("ann");
        // The writer hears its own echo, and not this ack. So it drops the replica, which has a proof at that moment.
        let ack = writer.link.hold(Direction::FromUpstream, format!(" {member}"), 1);
        let before = writer.metric("near_members_dropped_total");
        scope(|scope| {
            let client = scope.spawn(|| writer.replace("bob", &info));
            ack.wait();
            sleep(Duration::from_millis(40));
            reader.link.stall();
            client.join().expect("replaced");
        });
        writer.replace("ann", &info);
        reader.must_read("ann", &info);
        dropped += writer.metric("near_members_dropped_total") - before;
        ack.release();
        reader.link.restore();
    }
    assert!(dropped > 0);
}
