//! user-svc is killed at each step of a write, while the proxy holds the message of that step.

use std::thread::scope;

use devstack::testing::kind;

use super::Message::{Commit, Postgres, Redis};
use super::{Fleet, Message, NOBODY, Reads, Side, Step, Victim, Write, name_of};

/// What happens to the held message after the writer's death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Released,
    Discarded,
    /// Released only after another writer's write of the same user was acknowledged.
    Late,
}

const BARRIER: Message = Redis(1);
const UNBARRIER: Message = Redis(2);

/// The messages of a write, in their order.
fn messages(write: Write) -> &'static [Message] {
    match write {
        Write::Register => &[Postgres(1), BARRIER, Commit, UNBARRIER],
        // First the row is locked and read, then changed.
        Write::Replace | Write::Delete => &[Postgres(1), Postgres(2), BARRIER, Commit, UNBARRIER],
    }
}

/// Whether the transaction of a writer that is killed at `step` is committed in the end.
fn commits(step: Step, fate: Fate) -> bool {
    match step.message {
        Postgres(_) | BARRIER => false,
        Commit => step.side == Side::Reply || fate == Fate::Released,
        _ => true,
    }
}

/// Whether a barrier stands in the end that no writer will lower.
fn leaves_a_barrier(step: Step, fate: Fate) -> bool {
    match (step.message, step.side) {
        (Postgres(_), _) => false,
        (BARRIER, Side::Message) => fate != Fate::Discarded,
        // The other writer has raised its own barrier over it, and lowered that.
        _ if fate == Fate::Late => false,
        (BARRIER, Side::Reply) | (Commit, _) => true,
        (_, side) => side == Side::Message && fate == Fate::Discarded,
    }
}

/// Whether the client has its answer at this step. The un-barrier of a replace or delete follows the answer.
fn is_answered(write: Write, step: Step) -> bool {
    step.message == UNBARRIER && write != Write::Register
}

/// Whether no other writer can write while this step's message is held: Postgres waits for it with the row locked.
fn keeps_the_lock(step: Step) -> bool {
    step.side == Side::Message && matches!(step.message, Postgres(2) | Commit)
}

fn kill_at_every_step(write: Write) {
    let fleet = Fleet::start();
    for &message in messages(write) {
        for side in [Side::Message, Side::Reply] {
            for fate in [Fate::Released, Fate::Discarded, Fate::Late] {
                let step = Step { message, side };
                let impossible = fate == Fate::Late && keeps_the_lock(step);
                // A reply to a dead writer is lost in any case.
                let repeated = fate == Fate::Discarded && side == Side::Reply;
                if !(impossible || repeated) {
                    kill_at(&fleet, write, step, fate);
                }
            }
        }
    }
}

fn kill_at(fleet: &Fleet, write: Write, step: Step, fate: Fate) {
    let name = &name_of((write, step.message, step.side, fate));
    let states = match write {
        Write::Register => [NOBODY, "new", "newest"],
        Write::Replace => ["old", "new", "newest"],
        Write::Delete => ["old", NOBODY, "newest"],
    };
    let [old, new, newest] = states;
    if old != NOBODY {
        assert_eq!(fleet.write(NOBODY, name, old), 201);
    }
    let victim = Victim::start(&fleet.stack, fleet.stack.user_svc(), name);
    fleet.warm(name);
    let mut reads = Reads { readers: fleet.readers.iter().collect(), name, states: &states, possible: 0..=1 };

    let held = victim.hold(&step, name);
    scope(|scope| {
        let client = scope.spawn(|| write.send(&victim.service, name, new));
        held.wait();
        if is_answered(write, step) {
            assert!(client.join().expect("no panic").is_ok_and(|answer| answer.status < 300));
            reads.must_be(new);
            reads.look();
            return victim.service.kill();
        }
        reads.look();
        victim.service.kill();
        assert!(client.join().expect("no panic").is_err(), "the client got no answer");
    });
    reads.look();

    let outcome = if commits(step, fate) { new } else { old };
    let other_writes = |reads: &mut Reads| {
        let status = fleet.write(outcome, name, newest);
        assert_eq!(
            status,
            if outcome == NOBODY { 201 } else { 200 },
            "at once: the dead writer holds no lock"
        );
        reads.must_be(newest);
        reads.look();
    };
    match fate {
        Fate::Released => held.release(),
        Fate::Discarded => held.discard(),
        Fate::Late => {
            other_writes(&mut reads);
            held.release();
        }
    }
    victim.wait_until_forgotten(&fleet.stack, || reads.look());
    let truth = if fate == Fate::Late { newest } else { outcome };
    assert_eq!(fleet.truth(name), truth);
    reads.must_be(truth);
    reads.look();
    assert_eq!(kind(&fleet.stack, name) == "B", leaves_a_barrier(step, fate));
    fleet.expire(name, "B");
    reads.look_closely();
    if fate != Fate::Late {
        other_writes(&mut reads);
        reads.look_closely();
    }
}

#[test]
fn no_read_goes_back_after_a_writer_is_killed_at_any_step_of_a_register() {
    kill_at_every_step(Write::Register);
}

#[test]
fn no_read_goes_back_after_a_writer_is_killed_at_any_step_of_a_replace() {
    kill_at_every_step(Write::Replace);
}

#[test]
fn no_read_goes_back_after_a_writer_is_killed_at_any_step_of_a_delete() {
    kill_at_every_step(Write::Delete);
}

/// Another writer has raised its barrier and is about to commit when a message of the dead writer arrives.
fn a_late_message_meets_a_writer(fleet: &Fleet, late: Message) {
    let name = &name_of(("meets", late));
    let states = ["old", "new", "newest"];
    let before = if late == UNBARRIER { 1 } else { 0 };
    assert_eq!(fleet.write(NOBODY, name, "old"), 201);
    // A late un-barrier brings a copy, since there was one.
    fleet.warm(name);
    let dead = Victim::start(&fleet.stack, fleet.stack.user_svc(), name);
    let held = dead.hold(&Step { message: late, side: Side::Message }, name);
    scope(|scope| {
        let client = scope.spawn(|| Write::Replace.send(&dead.service, name, "new"));
        held.wait();
        if late == UNBARRIER {
            assert_eq!(client.join().expect("no panic").expect("answered at COMMIT").status, 200);
            return dead.service.kill();
        }
        dead.service.kill();
        assert!(client.join().expect("no panic").is_err(), "the client got no answer");
    });

    let other = Victim::start(&fleet.stack, fleet.stack.user_svc(), "other");
    let mut reads =
        Reads { readers: fleet.readers.iter().collect(), name, states: &states, possible: before..=2 };
    let commit = other.hold(&Step { message: Commit, side: Side::Message }, name);
    let unbarrier = other.hold(&Step { message: UNBARRIER, side: Side::Message }, name);
    scope(|scope| {
        let client = scope.spawn(|| Write::Replace.send(&other.service, name, "newest"));
        commit.wait();
        held.release();
        dead.wait_until_forgotten(&fleet.stack, || reads.look());
        assert_eq!(kind(&fleet.stack, name), "B", "one of the two barriers stands");
        reads.look_closely();
        commit.release();
        unbarrier.wait();
        reads.must_be("newest");
        reads.look_closely();
        unbarrier.release();
        assert_eq!(client.join().expect("no panic").expect("answered").status, 200);
    });
    reads.look_closely();
    fleet.expire(name, "B");
    reads.look_closely();
}

#[test]
fn a_dead_writers_late_message_takes_nothing_from_another_writer() {
    let fleet = Fleet::start();
    for late in [BARRIER, UNBARRIER] {
        a_late_message_meets_a_writer(&fleet, late);
    }
}
