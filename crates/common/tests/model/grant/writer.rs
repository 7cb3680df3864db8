//! A writer under the grant: with a barrier in the granted process, or without one while the grant is suspended.

use super::{Action, Copy, Epoch, Grant, Grants, Held, Process, Rule, State};
use crate::check::Write;

/// A process of user-svc and the one write that it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    stage: Stage,
    /// The suspension that this process knows of, and for how many ticks.
    suspension: Option<(Epoch, u8)>,
    pub barriers: Barriers,
}

/// Where the barriers of a writer are, which its un-barrier may find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Barriers {
    /// In each process now.
    pub stand: [bool; 2],
    /// In A, of whose past B may be promoted.
    pub was_in_a: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Idle,
    /// Only without [`Rule::GrantReadAfterLock`]: has read the grant, waits for its locks.
    Early(Grant),
    /// Has the shared advisory lock. The statement that waits for the row lock may have read the grant, if its snapshot
    /// is that old.
    Shared(Option<Grant>),
    /// Has the row lock too. It reads the grant and raises its barrier, in any order.
    Locked {
        grant: Option<Grant>,
        barrier: Option<Process>,
    },
    /// COMMIT is next, or under way; with a barrier in this process, if there is one. The writer may have died.
    Ready(Option<(Process, Epoch)>),
    /// A replace is committed and acknowledged. Its un-barrier, which may leave this copy, arrives soon, late or never.
    Leaving(Copy),
    /// Rolled back, since the process of this grant takes no barrier. It is to be suspended.
    Refused(Epoch),
}

/// What a writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    ReadGrantEarly,
    TakeSharedLock,
    LockRow,
    ReadGrant,
    /// Raises the barrier in the process that it is connected to.
    Barrier(Process),
    /// The granted process cannot be reached, is another one, or refuses the barrier: the transaction is rolled back.
    Refused,
    /// Ends the grant that has failed, in a transaction of its own that takes no advisory lock.
    Suspend,
    /// The grant is suspended, and this process may write without a barrier.
    GoWithout,
    /// The grant is suspended, and this process has to wait: the transaction is rolled back.
    Wait,
    /// COMMIT takes effect, and is acknowledged.
    Commit,
    /// The un-barrier finds the writer's own barrier in this process, and leaves a copy with this tag.
    LeaveCopy(Process, Epoch),
    /// The transaction is rolled back, or the writer ends.
    End,
}

impl Writer {
    pub const IDLE: Self = Self {
        stage: Stage::Idle,
        suspension: None,
        barriers: Barriers { stand: [false; 2], was_in_a: false },
    };

    /// Whether a transaction is under way. It has the shared advisory lock.
    pub fn has_transaction(&self) -> bool {
        matches!(self.stage, Stage::Shared(_) | Stage::Locked { .. } | Stage::Ready(_))
    }

    fn has_row(&self) -> bool {
        matches!(self.stage, Stage::Locked { .. } | Stage::Ready(_))
    }

    /// Whether it set a barrier there for a COMMIT that may still come.
    pub fn has_barrier(&self, process: Process) -> bool {
        match self.stage {
            Stage::Locked { barrier, .. } => barrier == Some(process),
            Stage::Ready(barrier) => barrier.is_some_and(|(raised_in, _)| raised_in == process),
            _ => false,
        }
    }

    pub fn tick(&mut self, validity: u8) {
        if let Some((_, known_for)) = &mut self.suspension {
            *known_for = (*known_for + 1).min(validity);
        }
    }

    /// What it knows of a suspension, and is to suspend, makes no difference when the epoch is another.
    pub fn forget(&mut self, epoch: Epoch) {
        self.suspension = self.suspension.filter(|(known, _)| *known == epoch);
        if matches!(self.stage, Stage::Refused(failed) if failed != epoch) {
            self.stage = Stage::Idle;
        }
    }

    /// B is promoted from a state in which this writer's barrier, or another's, was in A.
    pub fn promote_barrier(&mut self) {
        self.barriers.stand[Process::B as usize] = self.barriers.was_in_a;
    }

    /// Only a replace that is under way, or that may leave its copy, finds its barriers again.
    pub fn forget_barriers(&mut self) {
        if !matches!(self.stage, Stage::Locked { .. } | Stage::Ready(_) | Stage::Leaving(_)) {
            self.barriers = Barriers::default();
        }
        if matches!(self.stage, Stage::Leaving(_)) && self.barriers == Barriers::default() {
            self.stage = Stage::Idle;
        }
    }

    pub fn forget_suspension(&mut self) {
        self.suspension = None;
    }

    fn learn(&mut self, epoch: Epoch, known_for: u8) {
        if self.suspension.is_none_or(|(known, _)| known != epoch) {
            self.suspension = Some((epoch, known_for));
        }
    }
}

impl Grants {
    /// Whether `writer` has known of the suspension `epoch` for the validity of a grant.
    pub(super) fn has_waited(&self, writer: Writer, epoch: Epoch) -> bool {
        writer.suspension == Some((epoch, self.validity))
    }

    /// Whether a SELECT finds no lock of a write under way at the row.
    pub(super) fn is_clear(&self, state: &State) -> bool {
        let locks_row = self.next_write(state).is_some_and(Write::locks_row);
        !locks_row || !state.writers.iter().any(Writer::has_row)
    }

    pub(super) fn write_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.is_up() {
            return;
        }
        let row_locked = state.writers.iter().any(Writer::has_row);
        let to_do = self.next_write(state).is_some();
        for (index, writer) in state.writers.iter().take(self.writers).enumerate() {
            let mut may = |step| actions.push(Action::Write(index, step));
            match writer.stage {
                Stage::Idle if !to_do => {}
                Stage::Idle if self.keeps(Rule::GrantReadAfterLock) => may(Step::TakeSharedLock),
                Stage::Idle => may(Step::ReadGrantEarly),
                Stage::Early(_) => {
                    may(Step::TakeSharedLock);
                    may(Step::End);
                }
                Stage::Shared(_) if !to_do => may(Step::End),
                Stage::Shared(grant) => {
                    if grant.is_none() {
                        may(Step::ReadGrant);
                    }
                    if !row_locked {
                        may(Step::LockRow);
                    }
                }
                Stage::Locked { grant, barrier } => self.locked_actions(state, *writer, grant, barrier, may),
                Stage::Ready(_) => {
                    may(Step::Commit);
                    may(Step::End);
                }
                Stage::Leaving(copy) => {
                    for process in [Process::A, Process::B] {
                        if !writer.barriers.stand[process as usize] {
                            continue;
                        }
                        if self.keeps(Rule::TagOfTransaction) {
                            may(Step::LeaveCopy(process, copy.tag));
                        } else {
                            self.tags(state, process).for_each(|tag| may(Step::LeaveCopy(process, tag)));
                        }
                    }
                    may(Step::End);
                }
                Stage::Refused(_) => {
                    if state.grant.epoch < self.changes {
                        may(Step::Suspend);
                    }
                    may(Step::End);
                }
            }
        }
    }

    fn locked_actions(
        &self,
        state: &State,
        writer: Writer,
        grant: Option<Grant>,
        barrier: Option<Process>,
        mut may: impl FnMut(Step),
    ) {
        let suspended = matches!(grant, Some(Grant { process: None, .. }));
        if barrier.is_none() && !suspended {
            for process in [Process::A, Process::B] {
                if state.is_there(process) {
                    may(Step::Barrier(process));
                }
            }
        }
        match grant {
            None => may(Step::ReadGrant),
            Some(Grant { process: Some(_), .. }) => may(Step::Refused),
            Some(Grant { process: None, epoch }) => {
                let may_go = self.has_waited(writer, epoch) || !self.keeps(Rule::WaitAfterSuspension);
                may(if may_go { Step::GoWithout } else { Step::Wait });
            }
        }
    }

    pub(super) fn write(&self, state: &mut State, index: usize, step: Step) {
        let mut writer = state.writers[index];
        writer.stage = match (step, writer.stage) {
            (Step::ReadGrantEarly, _) => Stage::Early(state.grant),
            (Step::TakeSharedLock, Stage::Early(grant)) => Stage::Shared(Some(grant)),
            (Step::TakeSharedLock, _) => Stage::Shared(None),
            (Step::LockRow, Stage::Shared(grant)) => Stage::Locked { grant, barrier: None },
            (Step::ReadGrant, Stage::Shared(_)) => Stage::Shared(Some(state.grant)),
            (Step::ReadGrant, Stage::Locked { barrier, .. }) => {
                self.ready(state, Stage::Locked { grant: Some(state.grant), barrier })
            }
            (Step::Barrier(process), Stage::Locked { grant, .. }) => {
                state.set(process, Held::Barrier);
                writer.barriers.stand[process as usize] = true;
                writer.barriers.was_in_a |= process == Process::A;
                self.ready(state, Stage::Locked { grant, barrier: Some(process) })
            }
            (Step::Refused, Stage::Locked { grant: Some(Grant { epoch, .. }), .. }) => Stage::Refused(epoch),
            (Step::Suspend, Stage::Refused(_)) => {
                // Its epoch is the current one: else there is nothing to suspend, and the stage is another.
                state.change_grant(None);
                writer.learn(state.grant.epoch, 0);
                Stage::Idle
            }
            (Step::GoWithout, _) => Stage::Ready(None),
            (Step::Wait, Stage::Locked { grant: Some(Grant { epoch, .. }), .. }) => {
                // Another writer made this suspension, if this one does not know of it yet.
                let waits = self.keeps(Rule::WaitAfterAnothersSuspension);
                writer.learn(epoch, if waits { 0 } else { self.validity });
                Stage::Idle
            }
            (Step::Commit, stage) => {
                let write = self.next_write(state);
                state.committed += 1;
                state.history.acknowledged(state.committed);
                match stage {
                    Stage::Ready(Some((_, tag))) if write == Some(Write::Replace) => {
                        Stage::Leaving(Copy { version: state.committed, tag })
                    }
                    _ => Stage::Idle,
                }
            }
            (Step::LeaveCopy(process, tag), Stage::Leaving(copy)) => {
                state.set(process, Held::Entry(Copy { tag, ..copy }));
                Stage::Idle
            }
            (Step::End, _) => Stage::Idle,
            (step, stage) => unreachable!("{step:?} at {stage:?}"),
        };
        state.writers[index] = writer;
    }

    /// COMMIT is next, if the grant names the process that has the barrier; unless this is a register, after a wait.
    fn ready(&self, state: &mut State, stage: Stage) -> Stage {
        let Stage::Locked { grant: Some(Grant { process: Some(granted), epoch }), barrier: Some(barrier) } =
            stage
        else {
            return stage;
        };
        if granted != barrier && self.keeps(Rule::WriteGranted) {
            return stage;
        }
        if self.next_write(state).is_some_and(Write::locks_row) {
            // Near copies that renewals in this process prove have run out.
            state.near = state.near.filter(|near| near.process != barrier);
        }
        Stage::Ready(Some((barrier, epoch)))
    }
}
