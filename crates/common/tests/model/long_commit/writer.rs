//! A writer whose COMMIT may take as long as it likes.

use super::{Action, Faults, Held, LongCommit, Rule, State};
use crate::check::{Version, Write};

/// A writer, or what is still under way of one that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    stage: Stage,
    /// The barrier at the key is this writer's.
    pub mine: bool,
    /// A SET of its barrier got no reply, and may still arrive, even after the writer has ended.
    late: bool,
}

/// How far a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Idle,
    /// Only without [`Rule::BarrierAfterLock`]: has its barrier, and waits for the lock.
    Early(Write),
    Locked(Write),
    /// A replace or delete that waits for near copies.
    Waiting(Write),
    /// Sends COMMIT, or has sent it, and learns the outcome: from the reply, or by asking whether it has ended.
    Undecided(Write),
    /// Has sent COMMIT and died: nobody learns the outcome.
    Dead(Write),
    /// The un-barrier is next, and then the answer if this is a register.
    Committed(Write, Version),
}

/// What a writer does next, or what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Lock(Write),
    /// Raises the barrier, and publishes unless it is a register. Early, only without [`Rule::BarrierAfterLock`].
    SetBarrier,
    SetBarrierEarly(Write),
    /// Redis does not reply: the SET may arrive later. The writer tries again, or ends here (503).
    SetBarrierUnanswered,
    /// That SET arrives.
    LateBarrierArrives,
    /// The wait is over.
    Waited,
    /// COMMIT takes effect. A replace or delete is acknowledged.
    Commit,
    /// The transaction has no effect.
    RollBack,
    /// Redis replies. A register is acknowledged.
    UnBarrier,
    /// A replace leaves its copy in place of its barrier.
    LeaveCopy,
    /// Redis does not reply: a register is acknowledged all the same.
    UnBarrierUnanswered,
    /// The writer dies, or its late message never arrives.
    Die,
}

impl Writer {
    pub const IDLE: Self = Self { stage: Stage::Idle, mine: false, late: false };

    /// The write whose transaction is under way.
    fn under_way(&self) -> Option<Write> {
        match self.stage {
            Stage::Idle | Stage::Early(_) | Stage::Committed(..) => None,
            Stage::Locked(write) | Stage::Waiting(write) | Stage::Undecided(write) | Stage::Dead(write) => {
                Some(write)
            }
        }
    }

    /// Whether a SELECT finds its lock at the row.
    pub fn has_row_lock(&self) -> bool {
        self.under_way().is_some_and(Write::locks_row)
    }
}

impl LongCommit {
    /// Whether `writer` lives, and keeps the barrier at the key.
    pub(super) fn keeps_barrier(&self, writer: &Writer) -> bool {
        let extends =
            writer.stage == Stage::Undecided(Write::Register) && self.keeps(Rule::ExtendForRegister);
        // Until its un-barrier, which comes soon, or never.
        let soon = matches!(writer.stage, Stage::Committed(Write::Register, _));
        (extends && (writer.mine || self.keeps(Rule::ExtendAnyBarrier))) || (soon && writer.mine)
    }

    fn outcomes(state: &State) -> &'static [Write] {
        if state.has_user(state.committed) { &[Write::Replace, Write::Delete] } else { &[Write::Register] }
    }

    pub(super) fn write_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let busy = state.writers.iter().filter(|writer| writer.stage != Stage::Idle).count();
        let locked = state.writers.iter().any(|writer| writer.under_way().is_some());
        let may_lock = !locked && state.committed < self.commits;
        // Idle writers are sorted to the front.
        if busy < self.writers && state.writers[0] == Writer::IDLE {
            for &write in Self::outcomes(state) {
                if !self.keeps(Rule::BarrierAfterLock) {
                    actions.push(Action::Write(0, Step::SetBarrierEarly(write)));
                } else if may_lock {
                    actions.push(Action::Write(0, Step::Lock(write)));
                }
            }
        }
        for (index, writer) in state.writers.iter().enumerate() {
            let mut may = |step| actions.push(Action::Write(index, step));
            if writer.late {
                may(Step::LateBarrierArrives);
            }
            match writer.stage {
                Stage::Idle if writer.late => may(Step::Die),
                Stage::Idle => {}
                Stage::Early(write) => {
                    if may_lock && Self::outcomes(state).contains(&write) {
                        may(Step::Lock(write));
                    }
                    may(Step::Die);
                }
                Stage::Locked(_) => {
                    may(Step::SetBarrier);
                    if !writer.late {
                        may(Step::SetBarrierUnanswered);
                    }
                    may(Step::RollBack);
                }
                Stage::Waiting(_) => {
                    may(Step::Waited);
                    may(Step::RollBack);
                }
                Stage::Undecided(write) => {
                    may(Step::Commit);
                    may(Step::RollBack);
                    if write != Write::Register || self.faults >= Faults::RegistersDie {
                        may(Step::Die);
                    }
                }
                Stage::Dead(_) => {
                    may(Step::Commit);
                    may(Step::RollBack);
                }
                Stage::Committed(write, _) => {
                    may(Step::UnBarrier);
                    if write == Write::Replace && (writer.mine || !self.keeps(Rule::CopyOverOwnBarrier)) {
                        may(Step::LeaveCopy);
                    }
                    if write == Write::Register && self.faults != Faults::BarriersLost {
                        may(Step::UnBarrierUnanswered);
                    }
                    may(Step::Die);
                }
            }
        }
    }

    pub(super) fn write(&self, state: &mut State, index: usize, step: Step) {
        let mut writer = state.writers[index];
        writer.stage = match (step, writer.stage) {
            (Step::Lock(write), Stage::Early(_)) => self.after_barrier(write),
            (Step::Lock(write), _) => Stage::Locked(write),
            (Step::SetBarrier, Stage::Locked(write)) => {
                Self::raise(state, write);
                writer.mine = true;
                self.after_barrier(write)
            }
            (Step::SetBarrierEarly(write), _) => {
                Self::raise(state, write);
                writer.mine = true;
                Stage::Early(write)
            }
            (Step::SetBarrierUnanswered, stage) => {
                writer.late = true;
                stage
            }
            (Step::LateBarrierArrives, stage) => {
                state.set(Held::Barrier);
                writer.mine = false;
                writer.late = false;
                stage
            }
            (Step::Waited, Stage::Waiting(write)) => {
                state.near = state.near.filter(|copy| !copy.before_message);
                Stage::Undecided(write)
            }
            (Step::Commit, Stage::Undecided(write)) => {
                Self::commit(state, write);
                if write.locks_row() || !self.keeps(Rule::RegisterAnswersLast) {
                    Self::acknowledge(state, state.committed);
                }
                Stage::Committed(write, state.committed)
            }
            (Step::Commit, Stage::Dead(write)) => {
                Self::commit(state, write);
                Stage::Idle
            }
            (Step::LeaveCopy, Stage::Committed(_, version)) => {
                state.set(Held::Entry(version));
                Stage::Idle
            }
            (Step::UnBarrier | Step::UnBarrierUnanswered, Stage::Committed(write, version)) => {
                // The script: another writer's barrier stays, anything else is removed.
                let foreign = state.key == Held::Barrier && !writer.mine;
                if step == Step::UnBarrier && !(foreign && self.keeps(Rule::SpareForeignBarriers)) {
                    state.set(Held::Nothing);
                }
                if write == Write::Register {
                    Self::acknowledge(state, version);
                }
                Stage::Idle
            }
            (Step::RollBack, _) => Stage::Idle,
            (Step::Die, Stage::Undecided(write)) => Stage::Dead(write),
            (Step::Die, stage) => {
                writer.late &= stage != Stage::Idle;
                Stage::Idle
            }
            (step, stage) => unreachable!("{step:?} at {stage:?}"),
        };
        writer.mine &= !matches!(writer.stage, Stage::Idle | Stage::Dead(_));
        state.writers[index] = writer;
    }

    /// Raises a barrier; a replace or delete publishes, too.
    fn raise(state: &mut State, write: Write) {
        state.set(Held::Barrier);
        if write.locks_row()
            && let Some(copy) = &mut state.near
        {
            copy.before_message = true;
        }
    }

    fn after_barrier(&self, write: Write) -> Stage {
        let waits = write.locks_row() && self.keeps(Rule::Wait);
        if waits { Stage::Waiting(write) } else { Stage::Undecided(write) }
    }

    fn commit(state: &mut State, write: Write) {
        state.committed += 1;
        state.users |= u8::from(write != Write::Delete) << state.committed;
    }

    fn acknowledge(state: &mut State, version: Version) {
        state.history.acknowledged(version);
        state.acknowledged.acknowledged(version);
    }
}
