//! A writer: lock, barrier, COMMIT, un-barrier, acknowledgement; and all the ways to be cut off in between.

use super::{Action, Faults, Held, OneKey, Rule, State};
use crate::check::Version;

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
    Early,
    Locked,
    /// Has the lock and a barrier. COMMIT is next.
    Ready,
    /// Sent COMMIT and died, or lost its connection: Postgres decides, and no process learns the outcome.
    InDoubt,
    /// The un-barrier is next.
    Committed(Version),
    /// Has ended, acknowledged or rolled back. Its un-barrier may still arrive, with this copy if there is one.
    Over(Option<Version>),
}

/// What a writer does next, or what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Lock,
    SetBarrier,
    /// Redis does not reply: the SET may arrive later. The writer tries again, or ends here (503).
    SetBarrierUnanswered,
    /// That SET arrives.
    LateBarrierArrives,
    Commit,
    /// The connection breaks, or the writer dies, while COMMIT is under way.
    CommitUnanswered,
    /// A COMMIT in doubt took effect.
    CommitLands,
    RollBack,
    /// Redis replies, and the write is acknowledged.
    UnBarrier,
    /// The same, and the new copy takes the barrier's place.
    LeaveCopy,
    /// Redis does not reply by the deadline: the write is acknowledged all the same.
    UnBarrierUnanswered,
    /// That script arrives.
    LateUnBarrierArrives,
    LateCopyArrives,
    /// The writer dies, or its late message never arrives.
    Die,
}

impl Writer {
    pub const IDLE: Self = Self { stage: Stage::Idle, mine: false, late: false };

    /// Whether it raised a barrier for a COMMIT that may still happen.
    pub fn relies_on_barrier(&self) -> bool {
        matches!(self.stage, Stage::Early | Stage::Ready | Stage::InDoubt)
    }

    fn has_lock(&self) -> bool {
        matches!(self.stage, Stage::Locked | Stage::Ready | Stage::InDoubt)
    }
}

impl OneKey {
    pub(super) fn write_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let busy = state.writers.iter().filter(|writer| writer.stage != Stage::Idle).count();
        let locked = state.writers.iter().any(Writer::has_lock);
        let may_commit = state.committed < self.commits;
        if busy < self.writers && state.writers[0] == Writer::IDLE && may_commit {
            if !self.keeps(Rule::BarrierAfterLock) {
                actions.push(Action::Write(0, Step::SetBarrier));
            } else if !locked {
                actions.push(Action::Write(0, Step::Lock));
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
                Stage::Early => {
                    if !locked && may_commit {
                        may(Step::Lock);
                    }
                    may(Step::Die);
                }
                Stage::Locked => {
                    may(Step::SetBarrier);
                    if !writer.late {
                        may(Step::SetBarrierUnanswered);
                    }
                    if !self.keeps(Rule::BarrierBeforeCommit) {
                        may(Step::Commit);
                    }
                    may(Step::RollBack);
                    may(Step::Die);
                }
                Stage::Ready => {
                    may(Step::Commit);
                    may(Step::CommitUnanswered);
                    may(Step::RollBack);
                }
                Stage::InDoubt => {
                    may(Step::CommitLands);
                    may(Step::Die);
                }
                Stage::Committed(_) => {
                    may(Step::UnBarrier);
                    if self.may_leave_copy(*writer) {
                        may(Step::LeaveCopy);
                    }
                    if self.faults != Faults::BarriersLost || !self.keeps(Rule::AcknowledgeLast) {
                        may(Step::UnBarrierUnanswered);
                    }
                    may(Step::Die);
                }
                Stage::Over(copy) => {
                    may(Step::LateUnBarrierArrives);
                    if copy.is_some() && self.may_leave_copy(*writer) {
                        may(Step::LateCopyArrives);
                    }
                    may(Step::Die);
                }
            }
        }
    }

    pub(super) fn write(&self, state: &mut State, index: usize, step: Step) {
        let mut writer = state.writers[index];
        match step {
            Step::Lock => {
                writer.stage = if writer.stage == Stage::Early { Stage::Ready } else { Stage::Locked };
            }
            Step::SetBarrier => {
                state.set(Held::Barrier);
                writer.mine = true;
                writer.stage = if writer.stage == Stage::Idle { Stage::Early } else { Stage::Ready };
            }
            Step::SetBarrierUnanswered => writer.late = true,
            Step::LateBarrierArrives => {
                state.set(Held::Barrier);
                writer.late = false;
                writer.mine = !self.keeps(Rule::SpareUnansweredBarriers) && writer.stage != Stage::Idle;
            }
            Step::Commit => {
                state.committed += 1;
                writer.stage = Stage::Committed(state.committed);
            }
            Step::CommitUnanswered => {
                writer.mine = false;
                writer.stage = Stage::InDoubt;
            }
            Step::CommitLands => {
                state.committed += 1;
                writer.stage = Stage::Idle;
            }
            Step::RollBack => {
                let copy = (!self.keeps(Rule::CopyAfterCommit)).then_some(state.committed + 1);
                writer.stage = Stage::Over(copy);
            }
            Step::UnBarrier | Step::LeaveCopy | Step::UnBarrierUnanswered => {
                let Stage::Committed(version) = writer.stage else { unreachable!("{step:?} of {writer:?}") };
                match step {
                    Step::UnBarrier => self.un_barrier(state, writer),
                    Step::LeaveCopy => state.set(Held::Entry(version)),
                    _ => {}
                }
                let answered = step != Step::UnBarrierUnanswered;
                writer.stage = if answered { Stage::Idle } else { Stage::Over(Some(version)) };
                writer.mine &= !answered;
                state.history.acknowledged(version);
            }
            Step::LateUnBarrierArrives => {
                self.un_barrier(state, writer);
                writer.stage = Stage::Idle;
                writer.mine = false;
            }
            Step::LateCopyArrives => {
                let Stage::Over(Some(version)) = writer.stage else { unreachable!("{step:?} of {writer:?}") };
                state.set(Held::Entry(version));
                writer.stage = Stage::Idle;
                writer.mine = false;
            }
            Step::Die if writer.stage == Stage::Idle => writer.late = false,
            Step::Die => {
                writer.stage = Stage::Idle;
                writer.mine = false;
            }
        }
        state.writers[index] = writer;
    }

    /// Whether the script finds this writer's barrier. (It leaves a copy only where there was one before, or removes the
    /// barrier: both are checked.)
    fn may_leave_copy(&self, writer: Writer) -> bool {
        self.keeps(Rule::Leases) && (writer.mine || !self.keeps(Rule::CopyOverOwnBarrier))
    }

    /// The script: another writer's barrier stays, anything else is removed. (What it publishes is in the model of the
    /// near cache.)
    fn un_barrier(&self, state: &mut State, writer: Writer) {
        if state.key == Held::Barrier && !writer.mine && self.keeps(Rule::SpareForeignBarriers) {
            return;
        }
        let committed = match writer.stage {
            Stage::Committed(version) => version,
            _ => 0,
        };
        state.set(if self.keeps(Rule::Leases) { Held::Nothing } else { Held::Version(committed) });
    }
}
