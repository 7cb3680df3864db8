//! A writer, with what the near caches ask of it: publish, and wait.

use super::{Action, Faults, LEASE, Near, Rule, Slot, State, Writes};
use crate::check::Version;

/// A writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    stage: Stage,
    /// The barrier at the key is this writer's.
    pub mine: bool,
    /// Ticks of its wait, as far as they count.
    waited: u8,
}

/// Where a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Idle,
    Locked,
    Barriered,
    /// Only without [`Rule::BarrierFirst`]: has published, and has no barrier yet.
    Announced,
    /// Barrier and publish are done. The wait, and COMMIT, are next.
    Published,
    /// Redis is not there. Goes on without: the wait, and COMMIT, are next.
    Unreached,
    /// Sent COMMIT and died, or lost its connection: Postgres decides, and nobody hears of it.
    InDoubt,
    /// The un-barrier is next.
    Committed(Version),
    /// Found its barrier lost, has published again, waits again.
    SecondWait(Version),
}

/// What a writer does next, or what befalls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Lock,
    SetBarrier,
    Publish,
    /// Redis is not there for one of these.
    GoOn,
    /// Register or replace (a user is there after it), or delete.
    Commit {
        user: bool,
    },
    /// The connection breaks, or the writer dies, while COMMIT is under way.
    CommitUnanswered,
    /// A COMMIT in doubt took place.
    CommitLands {
        user: bool,
    },
    UnBarrier,
    /// Redis does not answer within the deadline: acknowledged all the same.
    UnBarrierUnanswered,
    /// Ends its second wait.
    Acknowledge,
    /// Dies, or rolls back: its barrier stands until it expires.
    Die,
}

impl Writer {
    pub const IDLE: Self = Self { stage: Stage::Idle, mine: false, waited: 0 };

    /// Whether it set a barrier for a COMMIT that may still come.
    pub fn relies_on_barrier(&self) -> bool {
        matches!(self.stage, Stage::Barriered | Stage::Published | Stage::InDoubt)
    }

    fn has_lock(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Committed(_) | Stage::SecondWait(_))
    }
}

impl Near {
    pub(super) fn age_writer(&self, writer: &mut Writer) {
        let waits = match writer.stage {
            Stage::Published | Stage::Announced | Stage::Unreached | Stage::SecondWait(_) => true,
            Stage::Locked | Stage::Barriered => !self.keeps(Rule::WaitFromPublish),
            Stage::Committed(_) => !self.keeps(Rule::WaitBeforeCommit),
            Stage::Idle | Stage::InDoubt => false,
        };
        if waits {
            writer.waited = (writer.waited + 1).min(LEASE);
        }
    }

    /// Whether the wait before COMMIT is over, or not needed.
    fn may_commit(&self, state: &State, writer: Writer) -> bool {
        let registers = !state.has_user(state.committed) && self.writes != Writes::RegistersWait;
        let rule = if writer.stage == Stage::Unreached { Rule::WaitWithoutRedis } else { Rule::Wait };
        registers || writer.waited == LEASE || !self.keeps(rule) || !self.keeps(Rule::WaitBeforeCommit)
    }

    pub(super) fn write_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let busy = state.writers.iter().filter(|&&writer| writer != Writer::IDLE).count();
        let locked = state.writers.iter().any(Writer::has_lock);
        if busy < self.writers && !locked && state.committed < self.commits {
            actions.push(Action::Write(0, Step::Lock));
        }
        // There is always a user after a register; after a replace, too; but not after a delete.
        let may_delete = state.has_user(state.committed) && self.writes != Writes::NoDeletes;
        let outcomes = if may_delete { &[true, false][..] } else { &[true] };
        for (index, writer) in state.writers.iter().enumerate() {
            let mut may = |step| actions.push(Action::Write(index, step));
            match writer.stage {
                Stage::Idle => continue,
                Stage::Locked | Stage::Barriered | Stage::Announced if !state.is_redis_up() => {
                    may(Step::GoOn)
                }
                Stage::Locked if self.keeps(Rule::BarrierFirst) => may(Step::SetBarrier),
                Stage::Locked | Stage::Barriered => may(Step::Publish),
                Stage::Announced => may(Step::SetBarrier),
                Stage::Published | Stage::Unreached => {
                    if self.may_commit(state, *writer) {
                        outcomes.iter().for_each(|&user| may(Step::Commit { user }));
                        may(Step::CommitUnanswered);
                    }
                }
                Stage::InDoubt => outcomes.iter().for_each(|&user| may(Step::CommitLands { user })),
                Stage::Committed(_) => {
                    if state.is_redis_up() && (self.keeps(Rule::WaitBeforeCommit) || writer.waited == LEASE) {
                        may(Step::UnBarrier);
                    }
                    if self.faults == Faults::BarriersKept || !state.is_redis_up() {
                        may(Step::UnBarrierUnanswered);
                    }
                }
                Stage::SecondWait(_) => {
                    if writer.waited == LEASE {
                        may(Step::Acknowledge);
                    }
                }
            }
            may(Step::Die);
        }
    }

    pub(super) fn write(&self, state: &mut State, index: usize, step: Step) {
        let mut writer = state.writers[index];
        match step {
            Step::Lock => writer.stage = Stage::Locked,
            Step::SetBarrier => {
                state.set(Slot::Barrier);
                writer.mine = true;
                writer.stage =
                    if writer.stage == Stage::Announced { Stage::Published } else { Stage::Barriered };
            }
            Step::Publish => {
                if !self.keeps(Rule::WaitForNobody) && !state.replica.is_subscribed() {
                    writer.waited = LEASE;
                }
                state.replica.invalidate();
                writer.stage =
                    if writer.stage == Stage::Barriered { Stage::Published } else { Stage::Announced };
            }
            Step::GoOn => writer.stage = Stage::Unreached,
            Step::Commit { user } => {
                state.commit(user);
                writer.stage = Stage::Committed(state.committed);
                if self.keeps(Rule::WaitBeforeCommit) {
                    writer.waited = 0;
                }
            }
            Step::CommitUnanswered => writer = Writer { stage: Stage::InDoubt, ..Writer::IDLE },
            Step::CommitLands { user } => {
                state.commit(user);
                writer = Writer::IDLE;
            }
            Step::UnBarrier => writer = self.un_barrier(state, writer),
            Step::UnBarrierUnanswered | Step::Acknowledge => {
                let (Stage::Committed(version) | Stage::SecondWait(version)) = writer.stage else {
                    unreachable!("{step:?} of {writer:?}")
                };
                state.history.acknowledged(version);
                writer = Writer::IDLE;
            }
            Step::Die => writer = Writer::IDLE,
        }
        state.writers[index] = writer;
    }

    /// The script, and what the writer does by its reply.
    fn un_barrier(&self, state: &mut State, writer: Writer) -> Writer {
        let Stage::Committed(version) = writer.stage else { unreachable!("un-barrier of {writer:?}") };
        if writer.mine || state.key != Slot::Barrier {
            state.set(Slot::Nothing);
        }
        if writer.mine || !self.keeps(Rule::SecondRound) {
            state.history.acknowledged(version);
            return Writer::IDLE;
        }
        state.replica.invalidate();
        Writer { stage: Stage::SecondWait(version), mine: false, waited: 0 }
    }
}
