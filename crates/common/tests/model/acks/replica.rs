//! A near cache and its connection: it renews its proof, applies messages, and acknowledges them.

use super::{Acks, Action, Fault, Held, Members, PROOF_LIFE, Process, Rule, Stamp, State};
use crate::check::Version;

/// How many messages are on their way to the replica at most. Redis takes no further script until there is room.
const INBOX: usize = 4;

/// What the replica knows, and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    copy: Option<Copy>,
    /// How many ticks ago the newest answered renewal was sent.
    proof: u8,
    /// Whether a renewal was answered on this connection.
    in_use: bool,
    link: Link,
    /// Where the connection leads.
    process: Process,
    inbox: [Option<Message>; INBOX],
    /// What the newest ack of this connection says.
    acked: Option<Stamp>,
    /// What it knows of the grant, while that is valid.
    view: Option<View>,
    /// Only without [`Rule::NewIds`]: a connection that is gone has asked for the removal of its former id, and Redis
    /// has not read that yet.
    removal: bool,
}

/// The process that a grant names, and its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct View {
    process: Process,
    epoch: u8,
}

/// A near copy, with the tag of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Copy {
    version: Version,
    tag: u8,
}

/// The connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Link {
    /// SUBSCRIBE is sent, and has not arrived yet.
    Fresh,
    Subscribed,
    /// Redis has dropped it. The replica does not know yet, and may still have messages in its buffer.
    Cut,
    Down,
}

/// What Redis sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Message {
    /// A write to this key, or to others. The stamp is left out when nobody waits for its ack.
    Publication { stamp: Option<Stamp>, ours: bool },
    /// The reply to a renewal that was sent this many ticks ago.
    Reply(u8),
}

/// What happens to the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends a renewal, which Redis executes at once.
    Renew,
    /// Redis refuses the renewal: the connection is ended.
    Refused,
    /// Reads the next message.
    Receive,
    /// Only without [`Rule::AckAfterApply`]: acknowledges the next message, and has not applied it.
    AckEarly,
    /// Only without [`Rule::WireOrder`]: looks at a reply before the message ahead of it.
    ReceiveReplyFirst,
    /// Redis, or a proxy in between, drops the connection.
    Break,
    /// The replica drops the connection, or notices that it is dropped.
    Close,
    /// Sends SUBSCRIBE on a new connection.
    Connect(Process),
    SubscribeArrives,
    /// Removes the former id, on the new connection.
    RemoveFormer,
    /// Only without [`Rule::NewIds`].
    LateRemoval,
    /// A renewal of a connection that was dropped arrives, or that of another replica that dies.
    LateRenewal(Process),
    /// Puts the entry in Redis near.
    Fetch,
    Look,
    /// What it knew of the grant is valid no longer.
    Lapse,
}

impl Replica {
    /// Connected for long, with a fresh proof and a copy.
    pub fn start(model: &Acks) -> Self {
        Self {
            copy: model.has_user(0).then_some(Copy { version: 0, tag: 0 }),
            proof: 0,
            in_use: true,
            link: Link::Subscribed,
            process: Process::A,
            inbox: [None; INBOX],
            acked: None,
            view: Some(View { process: Process::A, epoch: 0 }),
            removal: false,
        }
    }

    pub fn has_view(&self) -> bool {
        self.view.is_some()
    }

    pub fn views(&self, process: Process) -> bool {
        self.view.is_some_and(|view| view.process == process)
    }

    pub fn has_room(&self) -> bool {
        self.inbox[INBOX - 1].is_none()
    }

    /// Redis drops the connection.
    pub fn cut(&mut self) {
        if self.link != Link::Down {
            self.link = Link::Cut;
        }
    }

    /// `process` publishes.
    pub fn publish(&mut self, process: Process, stamp: Stamp, ours: bool) {
        if self.link == Link::Subscribed && self.process == process {
            self.push(Message::Publication { stamp: Some(stamp), ours });
        }
    }

    fn push(&mut self, message: Message) {
        let len = self.inbox.iter().flatten().count();
        self.inbox[len] = Some(message);
    }

    fn pop(&mut self) -> Option<Message> {
        let first = self.inbox[0].take();
        self.inbox.rotate_left(1);
        first
    }

    fn replies(&self) -> usize {
        self.inbox.iter().flatten().filter(|message| matches!(message, Message::Reply(_))).count()
    }

    /// Whether the near cache has another version than this.
    pub fn has_other(&self, version: Version) -> bool {
        self.copy.is_some_and(|copy| copy.version != version)
    }

    pub fn stamps(&mut self) -> impl Iterator<Item = &mut Stamp> {
        let inbox = self.inbox.iter_mut().flatten().filter_map(|message| match message {
            Message::Publication { stamp, .. } => stamp.as_mut(),
            Message::Reply(_) => None,
        });
        inbox.chain(self.acked.as_mut())
    }
}

impl Acks {
    /// What the near cache may return now.
    pub(super) fn near_answer(&self, state: &State) -> Option<Version> {
        let replica = &state.replica;
        let copy = replica.copy.filter(|_| replica.proof < PROOF_LIFE)?;
        let granted = replica.view.is_some_and(|view| view.epoch == copy.tag);
        (granted || !self.keeps(Rule::NearUnderGrant)).then_some(copy.version)
    }

    /// The copy that the near cache may put now: an absence is not kept near.
    fn fetched(&self, state: &State) -> Option<Copy> {
        let version = self.answer_of_redis(state).filter(|version| self.has_user(*version))?;
        Some(Copy { version, tag: state.replica.view?.epoch })
    }

    /// What a reader gets from the Redis of its view.
    pub(super) fn answer_of_redis(&self, state: &State) -> Option<Version> {
        let Held::Entry(version) = state.store(state.replica.view?.process).key else { return None };
        Some(version)
    }

    /// Whether an ack of this connection says that the message of `list` was applied.
    pub(super) fn is_acked(&self, state: &State, list: Stamp) -> bool {
        state.replica.acked.is_some_and(|acked| {
            let seq = acked.seq >= list.seq || !self.keeps(Rule::AckHasSeq);
            // A number of another roll may be any.
            if acked.roll == list.roll { seq } else { !self.keeps(Rule::AckHasRoll) }
        })
    }

    pub(super) fn age_replica(&self, replica: &mut Replica) {
        let older = |age: u8| (age + 1).min(PROOF_LIFE);
        replica.proof = older(replica.proof);
        for message in replica.inbox.iter_mut().flatten() {
            if let Message::Reply(age) = message {
                *age = older(*age);
            }
        }
    }

    /// Forgets acks and messages that can make no difference any more.
    pub(super) fn settle_acks(&self, state: &mut State) {
        let State { replica, stores, writers, .. } = state;
        let current = stores[0].hash.stamp;
        let by_mistake = |stamp: Stamp| {
            let other_roll = current.is_none_or(|current| current.roll != stamp.roll);
            !self.keeps(Rule::AckHasSeq) || !self.keeps(Rule::AckHasRoll) && other_roll
        };
        let matters = |stamp: Stamp| {
            let awaited = writers.iter().any(|writer| writer.awaits(stamp));
            // Its number may be given again.
            let is_ahead = |last: Stamp| last.roll == stamp.roll && last.seq < stamp.seq;
            let again = stores.iter().any(|store| store.hash.stamp.is_some_and(is_ahead));
            awaited || again || by_mistake(stamp)
        };
        replica.acked = replica.acked.filter(|stamp| matters(*stamp));
        let inbox = std::mem::take(&mut replica.inbox);
        let mut last = None;
        for message in inbox.into_iter().flatten() {
            let next = match message {
                Message::Publication { stamp, ours } => {
                    let stamp = stamp.filter(|stamp| matters(*stamp));
                    // Of two in a row, the first removes no more than the second.
                    let again = last == Some(Message::Publication { stamp: None, ours: true });
                    // There is nothing to remove: it may as well be applied.
                    let nothing = last.is_none() && replica.copy.is_none();
                    let known = stamp.is_none() && (again || nothing || !ours);
                    if known {
                        continue;
                    }
                    Message::Publication { stamp, ours }
                }
                // One that proves nothing any more.
                Message::Reply(PROOF_LIFE) if replica.in_use && self.keeps(Rule::ProofFromSending) => {
                    continue;
                }
                reply @ Message::Reply(_) => reply,
            };
            last = Some(next);
            replica.push(next);
        }
    }

    pub(super) fn replica_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let replica = &state.replica;
        let mut may = |step| actions.push(Action::Replica(step));
        let may_renew = match replica.link {
            Link::Subscribed => true,
            Link::Fresh => !self.keeps(Rule::SubscribeFirst),
            // The other connection may still be open.
            Link::Cut => !self.keeps(Rule::SameConnection),
            Link::Down => false,
        };
        if may_renew && !state.takes_writes(replica.process) {
            may(Step::Refused);
        } else if may_renew && replica.replies() == 0 && replica.has_room() {
            may(Step::Renew);
        }
        if let Some(first) = replica.inbox[0] {
            may(Step::Receive);
            if matches!(first, Message::Publication { .. }) {
                if !self.keeps(Rule::AckAfterApply) {
                    may(Step::AckEarly);
                }
                if !self.keeps(Rule::WireOrder) && replica.replies() > 0 {
                    may(Step::ReceiveReplyFirst);
                }
            }
        }
        self.link_actions(state, &mut may);
        if replica.in_use
            && replica.views(replica.process)
            && self.fetched(state).is_some_and(|copy| replica.copy != Some(copy))
        {
            may(Step::Fetch);
        }
        if self.has(Fault::Suspension) {
            may(if replica.view.is_none() { Step::Look } else { Step::Lapse });
        }
    }

    fn link_actions(&self, state: &State, may: &mut impl FnMut(Step)) {
        let replica = &state.replica;
        match replica.link {
            Link::Fresh => may(Step::SubscribeArrives),
            Link::Subscribed if state.store(replica.process).hash.dead && self.keeps(Rule::NewIds) => {
                may(Step::RemoveFormer);
            }
            Link::Subscribed | Link::Cut => {}
            Link::Down => {
                if let Some(view) = replica.view {
                    may(Step::Connect(view.process));
                }
            }
        }
        if matches!(replica.link, Link::Fresh | Link::Subscribed) {
            may(Step::Break);
        }
        let abandons = replica.link == Link::Fresh && !self.keeps(Rule::NewIds);
        if replica.link == Link::Cut || abandons {
            may(Step::Close);
        }
        if replica.removal {
            may(Step::LateRemoval);
        }
        if self.has(Fault::LateRenewal)
            && let Some(granted) = state.grant.process
            && state.takes_writes(granted)
            && !state.store(granted).hash.dead
        {
            may(Step::LateRenewal(granted));
        }
    }

    pub(super) fn replica(&self, state: &mut State, step: Step) {
        let grant = state.grant;
        let process = state.replica.process;
        let copy = self.fetched(state);
        let replica = &mut state.replica;
        match step {
            Step::Renew => {
                let hash = &mut state.stores[process as usize].hash;
                hash.live |= self.keeps(Rule::RenewalAdds) || !replica.in_use;
                if self.keeps(Rule::SameConnection) {
                    replica.push(Message::Reply(0));
                } else {
                    replica.proof = 0;
                    replica.in_use = true;
                }
            }
            Step::Receive => match replica.pop() {
                Some(Message::Publication { stamp, ours }) => {
                    if ours {
                        replica.copy = None;
                    }
                    replica.acked = stamp.or(replica.acked);
                }
                Some(Message::Reply(age)) => {
                    replica.proof = if self.keeps(Rule::ProofFromSending) { age } else { 0 };
                    replica.in_use = true;
                }
                None => {}
            },
            Step::AckEarly => {
                if let Some(Message::Publication { stamp: Some(stamp), .. }) = replica.inbox[0] {
                    replica.acked = Some(stamp);
                }
            }
            Step::ReceiveReplyFirst => {
                for message in &mut replica.inbox {
                    if let Some(Message::Reply(age)) = *message {
                        replica.proof = age;
                        *message = None;
                    }
                }
            }
            Step::Break => replica.cut(),
            Step::Close | Step::Refused => self.close(state),
            Step::Connect(process) => {
                replica.link = Link::Fresh;
                replica.process = process;
            }
            Step::SubscribeArrives => replica.link = Link::Subscribed,
            Step::RemoveFormer => state.stores[process as usize].hash.dead = false,
            Step::LateRemoval => {
                replica.removal = false;
                state.stores[process as usize].hash.live = false;
            }
            Step::LateRenewal(process) => state.stores[process as usize].hash.dead = true,
            Step::Fetch => replica.copy = copy,
            Step::Look => {
                let epoch = grant.epoch;
                replica.view = grant.process.map(|process| View { process, epoch });
                // A new epoch empties the near cache.
                if let Some(view) = replica.view {
                    replica.copy = replica.copy.filter(|copy| copy.tag == view.epoch);
                }
            }
            Step::Lapse => replica.view = None,
        }
    }

    /// The id of the connection is from now on one that does not acknowledge.
    fn close(&self, state: &mut State) {
        let replica = &mut state.replica;
        if self.keeps(Rule::NewIds) {
            for store in &mut state.stores {
                let Members { live, dead, .. } = &mut store.hash;
                *dead |= std::mem::take(live);
            }
            for writer in &mut state.writers {
                writer.lose_member();
            }
            replica.acked = None;
        } else {
            replica.removal |= replica.link == Link::Fresh;
        }
        let kept = Replica { link: Link::Down, inbox: [None; INBOX], in_use: false, ..*replica };
        *replica = if self.keeps(Rule::BreakForgets) {
            Replica { copy: None, proof: PROOF_LIFE, ..kept }
        } else {
            kept
        };
    }
}
