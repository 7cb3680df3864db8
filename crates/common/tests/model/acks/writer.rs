//! A process of user-svc: one script after the barrier, a list of near members, and a wait for their acks.

use super::{Acks, Action, Fault, Held, Members, Numbers, Others, PROOF_LIFE, Process, Rule, Stamp, State};
use crate::check::{Version, Write};

/// A process of user-svc, and the one write that it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Writer {
    stage: Stage,
    known: Option<Known>,
}

/// The roll and number that the newest script of this process saw on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Known {
    process: Process,
    stamp: Stamp,
    /// For how many ticks the roll has been known.
    age: u8,
}

/// Which key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Key,
    /// Any other key: of this write only the message, the list and the dropping of members matter.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Idle,
    /// Has the row lock. Only without [`Rule::MembersAfterBarrier`], it may have read the members.
    Locked {
        listed: Option<Members>,
    },
    /// Has raised its barrier. The script was sent this many ticks ago, where that matters.
    Barriered {
        process: Process,
        listed: Option<Members>,
        age: u8,
    },
    /// Only without [`Rule::OneScript`]: has a number, and has not published yet.
    Numbered {
        target: Target,
        process: Process,
        stamp: Stamp,
    },
    /// Has the reply to its script. The wait, and COMMIT if it has the row, are next.
    Waiting {
        target: Target,
        process: Process,
        list: List,
    },
    /// A register that has committed. Its un-barrier is next.
    Committed(Version),
}

/// What a script returns.
struct Reply {
    process: Process,
    stamp: Stamp,
    members: Members,
    /// How many ticks ago it was sent, where that matters.
    sent: u8,
}

/// The members that were listed, and have not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct List {
    stamp: Stamp,
    live: bool,
    dead: bool,
    /// How many ticks ago the script replied.
    waited: u8,
    /// For how many ticks its roll has been known. This goes on while the writer waits: a list that was not trusted
    /// when it arrived becomes so.
    known_for: u8,
}

/// What a writer does next, or what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Lock,
    /// Only without [`Rule::MembersAfterBarrier`].
    ReadMembers,
    SetBarrier(Process),
    Script(Target),
    /// Only without [`Rule::OneScript`]: these two are then the script.
    TakeNumber(Target),
    Publish,
    HearAck,
    /// Sets a new roll and removes the members that are silent.
    Drop,
    Commit,
    /// Commits without barrier or message, since the grant is suspended.
    CommitSuspended,
    /// A register's un-barrier, and its answer.
    UnBarrier,
    /// The writer dies, or rolls back.
    End,
}

impl Writer {
    /// Idle, and has known this roll for long.
    pub fn start(stamp: Stamp) -> Self {
        Self { stage: Stage::Idle, known: Some(Known { process: Process::A, stamp, age: PROOF_LIFE }) }
    }

    pub fn has_row(&self) -> bool {
        match self.stage {
            Stage::Idle | Stage::Committed(_) => false,
            Stage::Locked { .. } | Stage::Barriered { .. } => true,
            Stage::Numbered { target, .. } | Stage::Waiting { target, .. } => target == Target::Key,
        }
    }

    /// Whether it set a barrier there for a COMMIT that may still come.
    pub fn has_barrier(&self, process: Process) -> bool {
        matches!(self.stage, Stage::Barriered { process: own, .. } if own == process)
    }

    /// Whether it waits for an ack of this stamp.
    pub fn awaits(&self, acked: Stamp) -> bool {
        match self.stage {
            Stage::Numbered { stamp, .. } => stamp.roll == acked.roll,
            Stage::Waiting { list, .. } => {
                list.live && list.stamp.roll == acked.roll && list.stamp.seq <= acked.seq
            }
            _ => false,
        }
    }

    /// Its connection is gone, and with it what it knew of the roll.
    pub fn lose_trust(&mut self) {
        self.known = None;
    }

    /// The id of the replica's connection is from now on one that does not acknowledge.
    pub fn lose_member(&mut self) {
        match &mut self.stage {
            Stage::Waiting { list: List { live, dead, .. }, .. }
            | Stage::Locked { listed: Some(Members { live, dead, .. }) }
            | Stage::Barriered { listed: Some(Members { live, dead, .. }), .. } => {
                *dead |= std::mem::take(live);
            }
            _ => {}
        }
    }

    pub fn stamps(&mut self) -> impl Iterator<Item = &mut Stamp> {
        let stage = match &mut self.stage {
            Stage::Numbered { stamp, .. } => Some(stamp),
            Stage::Waiting { list, .. } => Some(&mut list.stamp),
            _ => None,
        };
        stage.into_iter().chain(self.known.as_mut().map(|known| &mut known.stamp))
    }
}

impl List {
    fn is_silent(&self) -> bool {
        self.live || self.dead
    }
}

impl Acks {
    pub(super) fn age_writer(&self, writer: &mut Writer) {
        let older = |age: &mut u8| *age = (*age + 1).min(PROOF_LIFE);
        if let Some(known) = &mut writer.known {
            older(&mut known.age);
        }
        match &mut writer.stage {
            Stage::Waiting { list, .. } => {
                older(&mut list.waited);
                older(&mut list.known_for);
            }
            Stage::Barriered { age, .. } if !self.keeps(Rule::WaitFromReply) => older(age),
            Stage::Barriered { age, .. } if !self.keeps(Rule::TrustFromReply) => older(age),
            _ => {}
        }
    }

    /// Forgets what can make no difference any more; `last` is what the hashes say.
    pub(super) fn settle_writer(&self, writer: &mut Writer, last: [Option<Stamp>; 2]) {
        let of_roll = |roll: u8| last.into_iter().flatten().filter(move |last| last.roll == roll);
        if let Some(known) = &mut writer.known {
            match of_roll(known.stamp.roll).map(|last| last.seq).min() {
                // No hash will say that, or less.
                Some(seq) => {
                    known.stamp.seq = if self.watches_seq() { known.stamp.seq.max(seq) } else { seq }
                }
                None if self.keeps(Rule::TrustIsOfRoll) => writer.known = None,
                None => known.stamp.seq = 0,
            }
        }
        let Stage::Waiting { target, list, .. } = &mut writer.stage else { return };
        if self.may_commit(list) {
            list.waited = if list.is_silent() { list.waited } else { PROOF_LIFE };
            list.known_for = PROOF_LIFE;
        }
        let may_drop = list.is_silent()
            && (of_roll(list.stamp.roll).next().is_some() || !self.keeps(Rule::DropUnderOwnRoll));
        match target {
            Target::Other if !may_drop => writer.stage = Stage::Idle,
            Target::Other => list.known_for = PROOF_LIFE,
            Target::Key => {}
        }
    }

    fn may_commit(&self, list: &List) -> bool {
        let known = list.known_for == PROOF_LIFE || !self.keeps(Rule::TrustIsKnown);
        list.waited == PROOF_LIFE || (known && !list.is_silent()) || !self.keeps(Rule::Wait)
    }

    fn may_drop(&self, state: &State, process: Process, list: &List) -> bool {
        let hash = state.store(process).hash;
        let own_roll = hash.stamp.is_some_and(|stamp| stamp.roll == list.stamp.roll);
        list.is_silent()
            && (list.waited == PROOF_LIFE
                || !self.keeps(Rule::DropAfterWait)
                || !self.keeps(Rule::DroppedAreAwaited))
            && (own_roll || !self.keeps(Rule::DropUnderOwnRoll))
            && state.takes_writes(process)
    }

    pub(super) fn write_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let row_locked = state.writers.iter().any(Writer::has_row);
        for (index, writer) in state.writers.iter().take(self.processes).enumerate() {
            let mut may = |step| actions.push(Action::Write(index, step));
            let script = |target| {
                if self.keeps(Rule::OneScript) { Step::Script(target) } else { Step::TakeNumber(target) }
            };
            match writer.stage {
                Stage::Idle => {
                    if !row_locked && self.next_write(state).is_some() {
                        may(Step::Lock);
                    }
                    if self.others == Others::Write && self.granted(state).is_some() {
                        may(script(Target::Other));
                    }
                    continue;
                }
                Stage::Locked { listed } => {
                    if let Some(process) = self.granted(state) {
                        may(Step::SetBarrier(process));
                        if listed.is_none() && !self.keeps(Rule::MembersAfterBarrier) {
                            may(Step::ReadMembers);
                        }
                    }
                    let known = !state.replica.has_view() || !self.keeps(Rule::SuspensionWaits);
                    if state.grant.process.is_none() && known {
                        may(Step::CommitSuspended);
                    }
                }
                Stage::Barriered { process, .. } => {
                    if self.next_write(state) == Some(Write::Register) {
                        may(Step::Commit);
                    } else if state.takes_writes(process) && state.has_room() {
                        may(script(Target::Key));
                    }
                }
                Stage::Numbered { .. } if state.has_room() => may(Step::Publish),
                Stage::Numbered { .. } => {}
                Stage::Waiting { target, process, list } => {
                    if list.live && self.is_acked(state, list.stamp) {
                        may(Step::HearAck);
                    }
                    if self.may_drop(state, process, &list) {
                        may(Step::Drop);
                    }
                    if target == Target::Key && self.may_commit(&list) {
                        may(Step::Commit);
                    }
                }
                Stage::Committed(_) => may(Step::UnBarrier),
            }
            may(Step::End);
        }
    }

    /// Where a write that begins now has its barrier.
    fn granted(&self, state: &State) -> Option<Process> {
        state.grant.process.filter(|process| state.takes_writes(*process) && state.has_room())
    }

    pub(super) fn write(&self, state: &mut State, index: usize, step: Step) {
        let mut writer = state.writers[index];
        match (step, writer.stage) {
            (Step::Lock, _) => writer.stage = Stage::Locked { listed: None },
            (Step::ReadMembers, _) => {
                let listed = state.grant.process.map(|process| state.store(process).hash);
                writer.stage = Stage::Locked { listed };
            }
            (Step::SetBarrier(process), Stage::Locked { listed }) => {
                let locks_row = self.next_write(state).is_some_and(Write::locks_row);
                state.store_mut(process).key = if locks_row { Held::Nothing } else { Held::Barrier };
                writer.stage = Stage::Barriered { process, listed, age: 0 };
            }
            (Step::Script(target), stage) => {
                let (process, listed, sent) = match stage {
                    Stage::Barriered { process, listed, age } => (process, listed, age),
                    _ => (state.grant.process.unwrap_or(Process::A), None, 0),
                };
                let stamp = self.take_number(state, process);
                state.replica.publish(process, stamp, target == Target::Key);
                let members = listed.unwrap_or(state.store(process).hash);
                self.reply(state, &mut writer, target, Reply { process, stamp, members, sent });
            }
            (Step::TakeNumber(target), stage) => {
                let process = match stage {
                    Stage::Barriered { process, .. } => process,
                    _ => state.grant.process.unwrap_or(Process::A),
                };
                let stamp = self.take_number(state, process);
                writer.stage = Stage::Numbered { target, process, stamp };
            }
            (Step::Publish, Stage::Numbered { target, process, stamp }) => {
                state.replica.publish(process, stamp, target == Target::Key);
                let members = state.store(process).hash;
                self.reply(state, &mut writer, target, Reply { process, stamp, members, sent: 0 });
            }
            (Step::HearAck, Stage::Waiting { target, process, list }) => {
                writer.stage = Stage::Waiting { target, process, list: List { live: false, ..list } };
            }
            (Step::Drop, Stage::Waiting { target, process, list }) => {
                let roll = state.new_roll();
                let hash = &mut state.store_mut(process).hash;
                if self.keeps(Rule::DropUnderNewRoll) {
                    hash.stamp = Some(Stamp { roll, seq: 0 });
                }
                hash.live &= !list.live;
                hash.dead &= !list.dead;
                if !self.keeps(Rule::DroppedAreAwaited) {
                    let list = List { live: false, dead: false, ..list };
                    writer.stage = Stage::Waiting { target, process, list };
                }
            }
            (Step::Commit, stage) => {
                let registers = self.next_write(state) == Some(Write::Register);
                state.committed += 1;
                writer.stage = if registers {
                    Stage::Committed(state.committed)
                } else {
                    state.history.acknowledged(state.committed);
                    // What is left to do is to drop the silent.
                    let Stage::Waiting { process, list, .. } = stage else { unreachable!("no list") };
                    Stage::Waiting { target: Target::Other, process, list }
                };
            }
            (Step::CommitSuspended, _) => {
                state.committed += 1;
                state.history.acknowledged(state.committed);
                writer.stage = Stage::Idle;
            }
            (Step::UnBarrier, Stage::Committed(version)) => {
                if let Some(process) = state.grant.process {
                    state.store_mut(process).key = Held::Nothing;
                }
                state.history.acknowledged(version);
                writer.stage = Stage::Idle;
            }
            (Step::End, _) => writer.stage = Stage::Idle,
            (step, stage) => unreachable!("{step:?} at {stage:?}"),
        }
        state.writers[index] = writer;
    }

    /// What the script's reply tells the writer.
    fn reply(&self, state: &mut State, writer: &mut Writer, target: Target, reply: Reply) {
        let Reply { process, stamp, members, sent } = reply;
        let before = writer.known.filter(|known| {
            let same_process = known.process == process || !self.keeps(Rule::TrustIsOfConnection);
            let same_roll = known.stamp.roll == stamp.roll || !self.keeps(Rule::TrustIsOfRoll);
            same_process && same_roll
        });
        let waited = if self.keeps(Rule::WaitFromReply) { 0 } else { sent };
        let known_for = match before {
            Some(known) => known.age,
            None if self.keeps(Rule::TrustFromReply) => 0,
            None => sent,
        };
        let list = List { stamp, live: members.live, dead: members.dead, waited, known_for };
        writer.known = Some(Known { process, stamp, age: known_for });
        if self.watches_seq()
            && before.is_some_and(|known| known.stamp.roll == stamp.roll && known.stamp.seq >= stamp.seq)
        {
            let roll = state.new_roll();
            let hash = &mut state.store_mut(process).hash;
            if hash.stamp == Some(stamp) {
                hash.stamp = Some(Stamp { roll, seq: 0 });
            }
            writer.known = None;
            let list = List { known_for: 0, ..list };
            writer.stage = Stage::Waiting { target, process, list };
            return;
        }
        writer.stage = Stage::Waiting { target, process, list };
    }

    /// The first half of the script: a roll if there is none, and the next number.
    fn take_number(&self, state: &mut State, process: Process) -> Stamp {
        let mut stamp = match state.store(process).hash.stamp {
            Some(Stamp { roll, seq }) => Stamp { roll, seq: seq + 1 },
            None => Stamp { roll: state.new_roll(), seq: 0 },
        };
        if self.numbers == Numbers::Clock {
            let given = state.stamps().into_iter().filter(|given| given.roll == stamp.roll);
            stamp.seq = given.map(|given| given.seq + 1).max().unwrap_or(0);
        }
        state.store_mut(process).hash.stamp = Some(stamp);
        stamp
    }

    /// Whether numbers may fail to grow, and that is looked at.
    fn watches_seq(&self) -> bool {
        let replaced = [Fault::Rewind, Fault::Resync];
        self.keeps(Rule::SeqGrows) && replaced.into_iter().any(|fault| self.has(fault))
    }
}
