//! What there is to check: the rules of the protocol, and what may go wrong.

use super::State;
use crate::check::{Promise, Version, Write};

/// What the protocol requires. A model without one of these must fail, unless its case says that it only costs time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A writer waits for acks, or for the whole time.
    Wait,
    /// A list is used only after its roll has been known for the life of a proof.
    TrustIsKnown,
    /// A roll that is new to this process is not trusted, however long the connection has been there.
    TrustIsOfRoll,
    /// What was known on one connection is not known on the next.
    TrustIsOfConnection,
    /// A roll is known from the reply that showed it, not from when the script was sent.
    TrustFromReply,
    /// The wait is counted from the script's reply, not from when it was sent.
    WaitFromReply,
    /// A number that does not grow means that the hash was replaced.
    SeqGrows,
    /// A silent member is dropped under a new roll.
    DropUnderNewRoll,
    /// Only a writer that has waited the whole time drops members.
    DropAfterWait,
    /// A writer that drops a member has waited for it, or waits all the same.
    DroppedAreAwaited,
    /// Members are dropped only if the roll is still that of the list.
    DropUnderOwnRoll,
    /// A message is acknowledged after it was applied.
    AckAfterApply,
    /// An ack names the number that it is for.
    AckHasSeq,
    /// An ack names the roll that it is for.
    AckHasRoll,
    /// Number, message and list are one script: messages leave in the order of their numbers.
    OneScript,
    /// Members are read after the barrier was raised.
    MembersAfterBarrier,
    /// Roll and members are one key: neither vanishes without the other.
    OneKey,
    /// Each renewal adds the member anew if the hash does not have it.
    RenewalAdds,
    /// The proof is counted from when the renewal was sent, not from the answer.
    ProofFromSending,
    /// The renewal is sent over the connection that messages arrive on.
    SameConnection,
    /// A renewal that was sent before SUBSCRIBE was answered proves nothing.
    SubscribeFirst,
    /// Messages are applied before a later reply is looked at.
    WireOrder,
    /// Each connection has an id of its own.
    NewIds,
    /// A break empties the near cache and ends its proof, before the former id is removed.
    BreakForgets,
    /// A load stores only a row that is clear.
    ClearRows,
    /// A near copy is used only under a valid grant with its tag.
    NearUnderGrant,
    /// Writes without Redis begin when no view of the last grant is valid.
    SuspensionWaits,
}

/// What may go wrong, besides what always may: the key vanishes, the replica's connection breaks, at either end first,
/// acks are lost, writers die. A register's barrier is kept until its COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The hash vanishes: it is evicted, or all is flushed.
    HashLost,
    /// Redis starts again, with any past state of the hash. Writers go on at once, which no grant would let them.
    Restart,
    /// The hash becomes a past state of itself, at once and under open connections.
    Rewind,
    /// The same, of a server that follows another meanwhile, and refuses writes for the life of a proof.
    Resync,
    /// A renewal of a connection that is gone arrives, or that of another replica that dies.
    LateRenewal,
    /// The grant is suspended, and given again to A, or to B.
    Suspension,
}

/// Whether writers write to other keys too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    None,
    Write,
}

/// Where a message's number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// The last one in the hash, and one more.
    Count,
    /// The clock of Redis, if that is more: a number is not given again when the hash has gone back.
    Clock,
}

/// Which past states of the hash A may take over, or B hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// The one before the replica joined, under the roll that all know.
    BeforeJoin,
    /// An empty hash, or any since the start, if a fault brings one back.
    Any,
}

/// A system to check.
#[derive(Clone, Copy, Debug)]
pub struct Acks {
    pub(super) promise: Promise,
    pub(super) faults: &'static [Fault],
    pub(super) past: Past,
    pub(super) numbers: Numbers,
    pub(super) without: Option<Rule>,
    /// The writes of the key, in their order.
    pub(super) writes: &'static [Write],
    pub(super) others: Others,
    /// How many processes of user-svc there are.
    pub(super) processes: usize,
    /// How often the grant may change.
    pub(super) changes: u8,
}

impl Acks {
    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// The write that makes the next version.
    pub(super) fn next_write(&self, state: &State) -> Option<Write> {
        self.writes.get(usize::from(state.committed)).copied()
    }

    pub(super) fn has_user(&self, version: Version) -> bool {
        match version.checked_sub(1) {
            Some(index) => self.writes[usize::from(index)] != Write::Delete,
            None => self.writes[0] != Write::Register,
        }
    }
}
