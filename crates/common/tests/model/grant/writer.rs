//! A writer under the grant: with a barrier in the granted process, or without one while the grant is suspended.

use super::{Action, Epoch, Grant, Grants, Held, Process, Rule, State};
use crate::check::Version;

/// A process of user-svc and the one write that it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    stage: Stage,
    /// The suspension that this process knows of, and whether a tick has passed since.
    suspension: Option<(Epoch, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Idle,
    /// Only without [`Rule::GrantReadAfterLock`]: has read the grant, waits for its locks.
    Early(Grant),
    /// Has the row lock and the shared advisory lock; has not read the grant.
    Locked,
    /// Has read the grant.
    Reads(Grant),
    /// COMMIT is next; with a barrier in this process, if there is one.
    Ready(Option<Process>),
    /// The un-barrier is next.
    Committed(Version, Option<Process>),
    /// Rolled back, since the process of this grant takes no barrier. It is to be suspended.
    Refused(Epoch),
}

/// What a writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    ReadGrantEarly,
    Lock,
    ReadGrant,
    /// Raises the barrier in this process.
    Barrier(Process),
    /// The granted process cannot be reached, or refuses the barrier: the transaction is rolled back.
    Refused,
    /// Ends the grant that has failed, in a transaction of its own.
    Suspend,
    /// The grant is suspended, and this process may write without a barrier.
    GoWithout,
    /// The grant is suspended, and this process has to wait: the transaction is rolled back.
    Wait,
    Commit,
    /// Lowers the barrier, if it can be reached, and acknowledges.
    Finish,
    /// Dies, or loses its connection to PostgreSQL.
    Die,
}

impl Writer {
    pub const IDLE: Self = Self { stage: Stage::Idle, suspension: None };

    /// Whether a transaction is under way.
    pub fn has_lock(&self) -> bool {
        matches!(self.stage, Stage::Locked | Stage::Reads(_) | Stage::Ready(_))
    }

    /// Whether it set a barrier there for a COMMIT that may still come.
    pub fn relies_on(&self, process: Process) -> bool {
        self.stage == Stage::Ready(Some(process))
    }

    /// Whether it has known of the suspension `epoch` for the validity of a grant.
    pub fn has_waited_for(&self, epoch: Epoch) -> bool {
        self.suspension == Some((epoch, true))
    }

    /// A tick passes.
    pub fn tick(&mut self) {
        if let Some((_, waited)) = &mut self.suspension {
            *waited = true;
        }
    }

    fn learn(&mut self, epoch: Epoch, waited: bool) {
        if self.suspension.is_none_or(|(known, _)| known != epoch) {
            self.suspension = Some((epoch, waited));
        }
    }
}

impl Grants {
    pub(super) fn write_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let locked = state.writers.iter().any(Writer::has_lock);
        for (index, writer) in state.writers.iter().take(self.writers).enumerate() {
            let mut may = |step| actions.push(Action::Write(index, step));
            match writer.stage {
                Stage::Idle if state.committed >= self.commits => {}
                Stage::Idle => {
                    if !self.keeps(Rule::GrantReadAfterLock) {
                        may(Step::ReadGrantEarly);
                    } else if !locked {
                        may(Step::Lock);
                    }
                }
                Stage::Early(_) => {
                    if !locked && state.committed < self.commits {
                        may(Step::Lock);
                    }
                    may(Step::Die);
                }
                Stage::Locked => may(Step::ReadGrant),
                Stage::Reads(Grant { process: Some(granted), .. }) => {
                    for process in [Process::A, Process::B] {
                        let allowed = process == granted || !self.keeps(Rule::WriteGranted);
                        if state.is_there(process) && allowed {
                            may(Step::Barrier(process));
                        }
                    }
                    may(Step::Refused);
                }
                Stage::Reads(Grant { process: None, epoch }) => {
                    may(if self.may_go_without(*writer, epoch) { Step::GoWithout } else { Step::Wait });
                }
                Stage::Ready(_) => {
                    may(Step::Commit);
                    may(Step::Die);
                }
                Stage::Committed(..) => {
                    may(Step::Finish);
                    may(Step::Die);
                }
                Stage::Refused(_) => {
                    may(Step::Suspend);
                    may(Step::Die);
                }
            }
        }
    }

    fn may_go_without(&self, writer: Writer, epoch: Epoch) -> bool {
        writer.has_waited_for(epoch) || !self.keeps(Rule::WaitAfterSuspension)
    }

    pub(super) fn write(&self, state: &mut State, index: usize, step: Step) {
        let mut writer = state.writers[index];
        writer.stage = match (step, writer.stage) {
            (Step::ReadGrantEarly, _) => Stage::Early(state.grant),
            (Step::Lock, Stage::Early(grant)) => Stage::Reads(grant),
            (Step::Lock, _) => Stage::Locked,
            (Step::ReadGrant, _) => Stage::Reads(state.grant),
            (Step::Barrier(process), _) => {
                state.set(process, Held::Barrier(state.committed + 1));
                Stage::Ready(Some(process))
            }
            (Step::Refused, Stage::Reads(Grant { epoch, .. })) => Stage::Refused(epoch),
            (Step::Suspend, Stage::Refused(failed)) => {
                if state.grant == (Grant { epoch: failed, ..state.grant }) && state.grant.epoch < self.changes
                {
                    state.change_grant(None);
                    writer.learn(state.grant.epoch, false);
                }
                Stage::Idle
            }
            (Step::GoWithout, _) => Stage::Ready(None),
            (Step::Wait, Stage::Reads(Grant { epoch, .. })) => {
                // Another writer made this suspension, if this one does not know of it yet.
                writer.learn(epoch, !self.keeps(Rule::WaitAfterAnothersSuspension));
                Stage::Idle
            }
            (Step::Commit, Stage::Ready(process)) => {
                state.committed += 1;
                // By now, near copies that renewals in this process prove have run out.
                for near in &mut state.near {
                    if near.is_some_and(|near| Some(near.process) == process) {
                        *near = None;
                    }
                }
                Stage::Committed(state.committed, process)
            }
            (Step::Finish, Stage::Committed(version, process)) => {
                if let Some(process) = process
                    && state.key(process) == Some(Held::Barrier(version))
                {
                    state.set(process, Held::Nothing);
                }
                state.history.acknowledged(version);
                Stage::Idle
            }
            (Step::Die, _) => Stage::Idle,
            (step, stage) => unreachable!("{step:?} at {stage:?}"),
        };
        state.writers[index] = writer;
    }
}
