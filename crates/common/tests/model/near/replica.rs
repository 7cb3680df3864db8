//! The replica's side of the invalidation channel, and what it proves.

use std::mem::{discriminant, take};

use super::{Action, Near, PROOF_LIFE, Rule, State};
use crate::check::Version;

/// How many messages are on their way to the replica at most.
const INBOX: usize = 6;

/// What the replica knows, and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    copy: Option<Version>,
    /// How many ticks ago the newest answered PING was sent.
    proof: u8,
    /// Whether a PING was answered on this connection.
    in_use: bool,
    link: Link,
    inbox: [Option<Message>; INBOX],
    /// Only without [`Rule::RemoveWithCount`]: the copy is removed, and the count has not moved yet.
    half_applied: bool,
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
    Invalidation,
    /// The reply to a PING that was sent this many ticks ago.
    Pong(u8),
}

/// What happens to the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends a PING, and Redis replies at once: a PING that takes longer proves less.
    Ping,
    /// Applies the next message.
    Receive,
    /// Only without [`Rule::RemoveWithCount`]: the second half of an invalidation.
    MoveCounts,
    /// Redis, or a proxy in between, drops the connection.
    Break,
    /// The replica notices that. The rest of its buffer is lost.
    NoticeBreak,
    /// Sends SUBSCRIBE on a new connection.
    Reconnect,
    SubscribeArrives,
}

impl Replica {
    /// Connected for long, without a proof.
    pub fn start(model: &Near) -> Self {
        Self {
            copy: None,
            proof: model.proof_life(),
            in_use: true,
            link: Link::Subscribed,
            inbox: [None; INBOX],
            half_applied: false,
        }
    }

    pub fn is_subscribed(&self) -> bool {
        self.link == Link::Subscribed
    }

    /// Whether stamps may be taken.
    pub fn is_in_use(&self) -> bool {
        self.in_use
    }

    pub fn copy(&self) -> Option<Version> {
        self.copy
    }

    pub fn put(&mut self, version: Version) {
        self.copy = Some(version);
    }

    /// Redis drops the connection.
    pub fn cut(&mut self) {
        if self.link != Link::Down {
            self.link = Link::Cut;
        }
    }

    /// Redis publishes.
    pub fn invalidate(&mut self) {
        if self.is_subscribed() {
            self.push(Message::Invalidation);
        }
    }

    /// Adds a message to those under way. Of two invalidations in a row, or of two PONGs, the last is enough: it
    /// removes no less, or proves no less.
    fn push(&mut self, message: Message) {
        let len = self.inbox.iter().flatten().count();
        let last = len.checked_sub(1).and_then(|last| self.inbox[last]);
        let in_a_row = last.is_some_and(|last| discriminant(&last) == discriminant(&message));
        self.inbox[if in_a_row { len - 1 } else { len }] = Some(message);
    }

    fn pop(&mut self) -> Option<Message> {
        let first = self.inbox[0].take();
        self.inbox.rotate_left(1);
        first
    }

    fn pongs(&self) -> usize {
        self.inbox.iter().flatten().filter(|message| matches!(message, Message::Pong(_))).count()
    }
}

impl Near {
    /// What the near cache may return now.
    pub(super) fn near_answer(&self, state: &State) -> Option<Version> {
        state.replica.copy.filter(|_| self.proof_holds(&state.replica))
    }

    pub(super) fn proof_holds(&self, replica: &Replica) -> bool {
        replica.proof < self.proof_life()
    }

    fn proof_life(&self) -> u8 {
        if self.keeps(Rule::OneLength) { PROOF_LIFE } else { PROOF_LIFE + 1 }
    }

    pub(super) fn age_replica(&self, replica: &mut Replica) {
        let older = |age: u8| (age + 1).min(self.proof_life());
        replica.proof = older(replica.proof);
        let messages = take(&mut replica.inbox);
        for message in messages.into_iter().flatten() {
            match message {
                Message::Pong(age) => {
                    let age = older(age);
                    // One that proves nothing any more is left out.
                    if age < self.proof_life() || !replica.in_use || !self.keeps(Rule::ProofFromSending) {
                        replica.push(Message::Pong(age));
                    }
                }
                Message::Invalidation => replica.push(message),
            }
        }
    }

    pub(super) fn replica_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let replica = &state.replica;
        let mut may = |step| actions.push(Action::Replica(step));
        let may_ping = match replica.link {
            Link::Subscribed => true,
            Link::Fresh => !self.keeps(Rule::SubscribeFirst),
            // The other connection may still be open.
            Link::Cut => !self.keeps(Rule::SameConnection),
            Link::Down => false,
        };
        if may_ping && replica.pongs() < self.pongs {
            may(Step::Ping);
        }
        if replica.half_applied {
            may(Step::MoveCounts);
        } else if replica.inbox[0].is_some() {
            may(Step::Receive);
        }
        match replica.link {
            Link::Fresh => {
                may(Step::SubscribeArrives);
                may(Step::Break);
            }
            Link::Subscribed => may(Step::Break),
            Link::Cut => may(Step::NoticeBreak),
            Link::Down if state.is_redis_up() => may(Step::Reconnect),
            Link::Down => {}
        }
    }

    pub(super) fn replica(&self, state: &mut State, step: Step) {
        let replica = &mut state.replica;
        match step {
            Step::Ping if !self.keeps(Rule::SameConnection) => {
                replica.proof = 0;
                replica.in_use = true;
            }
            Step::Ping => replica.push(Message::Pong(0)),
            Step::Receive => match replica.pop() {
                Some(Message::Invalidation) => {
                    replica.copy = None;
                    if self.keeps(Rule::RemoveWithCount) {
                        self.move_counts(state);
                    } else {
                        replica.half_applied = true;
                    }
                }
                Some(Message::Pong(age)) => {
                    replica.proof = if self.keeps(Rule::ProofFromSending) { age } else { 0 };
                    replica.in_use = true;
                }
                None => {}
            },
            Step::MoveCounts => {
                replica.half_applied = false;
                self.move_counts(state);
            }
            Step::Break => replica.cut(),
            Step::NoticeBreak => {
                let copy = replica.copy.filter(|_| !self.keeps(Rule::BreakForgets));
                *replica = Replica { copy, link: Link::Down, in_use: false, ..Replica::start(self) };
                if self.keeps(Rule::BreakMovesCounts) {
                    self.move_counts(state);
                }
            }
            Step::Reconnect => {
                replica.link = Link::Fresh;
                if self.keeps(Rule::BreakMovesCounts) {
                    self.move_counts(state);
                }
            }
            Step::SubscribeArrives => replica.link = Link::Subscribed,
        }
    }

    fn move_counts(&self, state: &mut State) {
        if self.keeps(Rule::CheckCount) {
            state.move_counts();
        }
    }
}
