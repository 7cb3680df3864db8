//! A replica with a near cache is killed, held up or cut off at each step of its part in a write: when it receives the
//! message, when it acknowledges, and when it renews its proof. The write waits for no longer than a proof holds, and
//! later ones not at all.

use std::collections::HashSet;
use std::thread::scope;

use devstack::proxy::Held;
use devstack::testing::{get, metric, wait_until};

use super::Message::{Ack, Invalidation, Renewal};
use super::{Fleet, NOBODY, Reads, Side, Step, Victim, Write, name_of};
use crate::acks::members;

const STEPS: [Step; 5] = [
    Step { message: Invalidation, side: Side::Message },
    Step { message: Ack, side: Side::Message },
    Step { message: Ack, side: Side::Reply },
    Step { message: Renewal, side: Side::Message },
    Step { message: Renewal, side: Side::Reply },
];

/// What happens to the replica after the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Killed,
    /// The held message goes on.
    GoesOn,
    /// The held message is lost, and its connection is reset.
    CutOff,
}

/// Two replicas with near caches that nothing happens to, and one that is disturbed.
struct Members {
    fleet: Fleet,
    others: HashSet<String>,
}

impl Members {
    fn start() -> Self {
        let fleet = Fleet::start();
        wait_until("both near caches are members", || members(&fleet.stack).len() == 2);
        let others = members(&fleet.stack);
        Self { fleet, others }
    }

    fn victim(&self, name: &str) -> Victim {
        Victim::start(&self.fleet.stack, self.fleet.stack.data_svc(), name)
    }

    /// Reads through the victim until it answers from its near cache. Returns the members that it is.
    fn warm(&self, victim: &Victim, name: &str) -> HashSet<String> {
        self.fleet.warm(name);
        wait_until("it has a near copy", || {
            let answer = get(&victim.service, name);
            answer.header("cache-status").is_some_and(|status| status.ends_with("near"))
        });
        let of_victim = members(&self.fleet.stack).difference(&self.others).cloned().collect::<HashSet<_>>();
        assert!(!of_victim.is_empty(), "it has a proof, so it is a member");
        of_victim
    }

    fn disturb(&self, victim: &Victim, write: Write, step: Step, fate: Fate) {
        let Self { fleet, .. } = self;
        let name = &name_of((write, step.message, step.side, fate));
        let new = if write == Write::Delete { NOBODY } else { "new" };
        let states = &["old", new];
        assert_eq!(fleet.write(NOBODY, name, "old"), 201);
        // The list is trusted after this one, and everybody has acknowledged a message.
        assert_eq!(fleet.write("old", name, "old"), 200);
        let member = self.warm(victim, name);
        // First through the victim: at once, while what it had before could still be in use.
        let readers = [&victim.service].into_iter().chain(&fleet.readers).collect();
        let mut reads = Reads { readers, name, states, possible: 0..=1 };

        let held = victim.hold(&step, name);
        if step.message == Renewal {
            held.wait();
        }
        let status = write.send(&fleet.writer, name, new).expect("answered").status;
        assert_eq!(status, if write == Write::Delete { 204 } else { 200 });
        // No read that starts now returns the old user, and the victim can still be read through.
        reads.must_be(new);
        reads.look();
        held.wait();
        if (step.message, step.side) != (Ack, Side::Reply) {
            self.wait_until_dropped(&member);
        }
        self.end(fate, victim, held);
        if fate == Fate::Killed {
            reads.readers.remove(0);
            victim.wait_until_forgotten(&fleet.stack, || reads.look());
        } else {
            reads.look();
            wait_until("it is a member again", || {
                reads.look();
                members(&fleet.stack).len() > self.others.len()
            });
        }
        reads.look_closely();
    }

    /// A write drops those that it has waited for in vain, unless it has not heard its own echo in time.
    fn wait_until_dropped(&self, member: &HashSet<String>) {
        wait_until("it is dropped", || {
            let dropped = members(&self.fleet.stack).is_disjoint(member);
            dropped || self.fleet.write("a user", "first", "again") != 200
        });
        assert!(metric(&self.fleet.writer, "near_members_dropped_total") > 0);
    }

    fn end(&self, fate: Fate, victim: &Victim, held: Held) {
        match fate {
            Fate::Killed => {
                victim.service.kill();
                held.release();
                self.wait_for_no_dead_member();
            }
            Fate::GoesOn => held.release(),
            Fate::CutOff => held.discard(),
        }
    }

    /// A write after its death may still have to find that it is silent. Those that follow do not wait for it.
    fn wait_for_no_dead_member(&self) {
        wait_until("no write waits for it any more", || {
            assert_eq!(self.fleet.write("a user", "first", "again"), 200);
            metric(&self.fleet.writer, "near_members") <= self.others.len() as u64
        });
    }

    fn at_every_step(&self, fate: Fate) {
        // One that lives can be disturbed again.
        let mut victim = None;
        for write in [Write::Replace, Write::Delete] {
            for step in STEPS {
                let name = name_of((fate, write, step.message, step.side));
                let of_this_step = victim.take().unwrap_or_else(|| self.victim(&name));
                self.disturb(&of_this_step, write, step, fate);
                victim = (fate != Fate::Killed).then_some(of_this_step);
            }
        }
    }
}

#[test]
fn a_replica_killed_while_it_receives_a_write_holds_up_no_other_write() {
    Members::start().at_every_step(Fate::Killed);
}

#[test]
fn a_replica_held_up_while_it_receives_a_write_returns_no_old_user_and_is_a_member_again() {
    Members::start().at_every_step(Fate::GoesOn);
}

#[test]
fn a_replica_cut_off_while_it_receives_a_write_returns_no_old_user_and_is_a_member_again() {
    Members::start().at_every_step(Fate::CutOff);
}

/// Two of them, at different steps of the same write.
#[test]
fn two_replicas_that_are_held_up_at_different_steps_return_no_old_user() {
    let members = Members::start();
    let [hearing, acks] = ["hearing", "acks"].map(|name| members.victim(name));
    let fleet = &members.fleet;
    assert_eq!(fleet.write(NOBODY, "ann", "old"), 201);
    for victim in [&hearing, &acks] {
        members.warm(victim, "ann");
    }
    let readers = [&hearing.service, &acks.service].into_iter().chain(&fleet.readers).collect();
    let mut reads = Reads { readers, name: "ann", states: &["old", "new"], possible: 0..=1 };
    let invalidation = hearing.hold(&Step { message: Invalidation, side: Side::Message }, "ann");
    let ack = acks.hold(&Step { message: Ack, side: Side::Message }, "ann");
    scope(|scope| {
        let client = scope.spawn(|| fleet.write("old", "ann", "new"));
        invalidation.wait();
        ack.wait();
        reads.look();
        assert_eq!(client.join().expect("no panic"), 200);
    });
    reads.must_be("new");
    reads.look();
    invalidation.release();
    ack.release();
    reads.look_closely();
}
