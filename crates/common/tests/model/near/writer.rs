//! A writer, with the two steps that near caches need: it publishes, and it waits.

use super::{Action, Faults, Held, Near, PROOF_LIFE, Protection, Rule, State, Writes};
use crate::check::Version;

/// A writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    stage: Stage,
    /// The barrier at the key is this writer's.
    pub mine: bool,
    /// How many ticks it has waited, as far as they count.
    waited: u8,
}

/// How far a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Idle,
    Locked,
    Barriered,
    /// Only without [`Rule::BarrierFirst`]: has published, and has no barrier yet.
    Announced,
    /// Has raised its barrier and published. The wait and COMMIT are next.
    Published,
    /// Redis is down, and the writer goes on without it. The wait and COMMIT are next.
    Unreached,
    /// Sent COMMIT and died, or lost its connection: Postgres decides, and no process learns the outcome.
    InDoubt,
    /// The un-barrier is next.
    Committed(Version),
    /// Found its barrier lost, has published again, and waits again.
    SecondWait(Version),
}

/// What a writer does next, or what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Lock,
    SetBarrier,
    Publish,
    /// Redis is down at one of these.
    GoOn,
    /// COMMIT of a register or a replace, which leave a user, or of a delete.
    Commit {
        user: bool,
    },
    /// The connection breaks, or the writer dies, while COMMIT is under way.
    CommitUnanswered,
    /// A COMMIT in doubt took effect.
    CommitLands {
        user: bool,
    },
    UnBarrier,
    /// Redis does not reply by the deadline: the write is acknowledged all the same.
    UnBarrierUnanswered,
    /// The second wait is over.
    Acknowledge,
    /// The writer dies, or rolls back: its barrier stands until it expires.
    Die,
}

impl Writer {
    pub const IDLE: Self = Self { stage: Stage::Idle, mine: false, waited: 0 };

    /// Whether it raised a barrier for a COMMIT that may still happen.
    pub fn relies_on_barrier(&self) -> bool {
        matches!(self.stage, Stage::Barriered | Stage::Published | Stage::InDoubt)
    }

    pub fn has_lock(&self) -> bool {
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
            writer.waited = (writer.waited + 1).min(PROOF_LIFE);
        }
    }

    /// Whether the wait before COMMIT is over, or not needed.
    fn may_commit(&self, state: &State, writer: Writer) -> bool {
        let registers = !state.has_user(state.committed) && self.writes != Writes::RegistersWait;
        let rule = if writer.stage == Stage::Unreached { Rule::WaitWithoutRedis } else { Rule::Wait };
        registers || writer.waited == PROOF_LIFE || !self.keeps(rule) || !self.keeps(Rule::WaitBeforeCommit)
    }

    pub(super) fn write_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let busy = state.writers.iter().filter(|&&writer| writer != Writer::IDLE).count();
        let locked = state.writers.iter().any(Writer::has_lock);
        if busy < self.writers && !locked && state.committed < self.commits {
            actions.push(Action::Write(0, Step::Lock));
        }
        // A register and a replace leave a user, a delete leaves none.
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
                        for &user in outcomes {
                            may(Step::Commit { user });
                        }
                        may(Step::CommitUnanswered);
                    }
                }
                Stage::InDoubt => {
                    for &user in outcomes {
                        may(Step::CommitLands { user });
                    }
                }
                Stage::Committed(_) => {
                    if state.is_redis_up()
                        && (self.keeps(Rule::WaitBeforeCommit) || writer.waited == PROOF_LIFE)
                    {
                        may(Step::UnBarrier);
                    }
                    if self.faults == Faults::BarriersKept || !state.is_redis_up() {
                        may(Step::UnBarrierUnanswered);
                    }
                }
                Stage::SecondWait(_) => {
                    if writer.waited == PROOF_LIFE {
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
                state.set(Held::Barrier);
                writer.mine = true;
                writer.stage =
                    if writer.stage == Stage::Announced { Stage::Published } else { Stage::Barriered };
            }
            Step::Publish => {
                if !self.keeps(Rule::WaitWithoutSubscribers) && !state.replica.is_subscribed() {
                    writer.waited = PROOF_LIFE;
                }
                state.replica.invalidate();
                writer.stage =
                    if writer.stage == Stage::Barriered { Stage::Published } else { Stage::Announced };
            }
            Step::GoOn => writer.stage = Stage::Unreached,
            Step::Commit { user } => {
                let registers = !state.has_user(state.committed);
                state.commit(user);
                if self.protection == Protection::RowLock && !registers {
                    state.history.acknowledged(state.committed);
                }
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

    /// The script, and what its reply makes the writer do.
    fn un_barrier(&self, state: &mut State, writer: Writer) -> Writer {
        let Stage::Committed(version) = writer.stage else { unreachable!("un-barrier of {writer:?}") };
        if writer.mine || state.key != Held::Barrier {
            state.set(Held::Nothing);
        }
        let second_round = self.protection == Protection::Barrier && self.keeps(Rule::SecondRound);
        if writer.mine || !second_round {
            state.history.acknowledged(version);
            return Writer::IDLE;
        }
        state.replica.invalidate();
        Writer { stage: Stage::SecondWait(version), mine: false, waited: 0 }
    }
}
