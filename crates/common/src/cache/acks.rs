//! How a writer knows that no near copy of what it changes is left: each near member has acknowledged its message, or
//! as much time has passed as a proof holds, whichever is first.
//!
//! The list of members is one hash in the granted Redis, so a flush, an eviction or a restart removes all of it or
//! nothing. It has a random name, the *roll*, and counts the messages. A list is trusted only when its roll has been
//! known for as long as a proof holds: a member that is not in it has renewed no proof since.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{RedisError, cmd};
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout_at};

use super::near::{PROOF_LIFE, PROOF_MARGIN};
use super::subscription::RECONNECT_INTERVAL;
use super::{Cache, CacheError};

/// The key of the list. Keys of entities hold a colon more.
pub const MEMBERS: &str = "2:members";
/// Who acknowledges each message at once, on behalf of nobody: a writer that hears it would hear the members too.
const ECHO: &str = "echo";
/// How many members' positions are kept at most. A member that reconnects is a new one.
const POSITIONS: usize = 1000;
/// How often the subscription to acks is tried.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// The place of a message among all: its list's roll, and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    roll: String,
    seq: u64,
}

impl Position {
    fn parse(text: &str) -> Option<Self> {
        let (roll, seq) = text.split_once(' ')?;
        Some(Self { roll: roll.to_owned(), seq: seq.parse().ok()? })
    }

    /// The ack of `member` for all messages up to here.
    #[must_use]
    pub fn ack(&self, member: &str) -> String {
        format!("{} {} {member}", self.roll, self.seq)
    }

    /// Whether an ack for this position is one for `other`.
    fn covers(&self, other: &Self) -> bool {
        self.roll == other.roll && self.seq >= other.seq
    }
}

/// What a writer publishes.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Its place among all messages.
    pub position: Position,
    /// The keys that are changed.
    pub keys: Vec<String>,
}

impl Message {
    /// None if `message` is none.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let (position, keys) = text.split_at(text.find(" [")?);
        Some(Self { position: Position::parse(position)?, keys: serde_json::from_str(keys).ok()? })
    }
}

/// What was published for a write: whose acks it waits for, and for how long.
#[derive(Debug)]
pub struct Published {
    position: Position,
    members: Vec<String>,
    /// When the list has been known for so long that it is complete.
    trusted_from: Instant,
    /// When no copy is left, even if no member answers.
    until: Instant,
}

impl Published {
    /// To members of which nothing is known: each may be silent.
    pub fn to_nobody_known() -> Self {
        let until = Instant::now() + PROOF_LIFE + PROOF_MARGIN;
        let position = Position { roll: String::new(), seq: 0 };
        Self { position, members: Vec::new(), trusted_from: until, until }
    }
}

/// A name for a list of members.
pub fn new_roll() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// The list that was read last, by this process.
#[derive(Debug, Clone)]
struct Known {
    /// The same only for calls on one set of connections.
    process: Arc<str>,
    position: Position,
    since: Instant,
}

/// What this process knows of the members, and of their acks.
#[derive(Debug, Default)]
pub struct Acks {
    known: Mutex<Option<Known>>,
    positions: Mutex<HashMap<String, Position>>,
    changed: Notify,
}

impl Acks {
    /// The newest message that is known. A later one has a greater number.
    pub fn newest(&self) -> Option<Position> {
        self.known.lock().as_ref().map(|known| known.position.clone())
    }

    /// Notes the list of members, `list`, as Redis has returned it to a call over the connections to `process`.
    /// `before` is the newest message that was known when the call was sent.
    ///
    /// # Errors
    /// The list has taken the place of a newer one with the same roll, which is returned: others may trust it.
    pub fn note(
        &self,
        process: &Arc<str>,
        mut list: HashMap<String, String>,
        before: Option<&Position>,
    ) -> Result<Published, String> {
        let now = Instant::now();
        let roll = list.remove("roll").unwrap_or_default();
        let seq = list.remove("seq").and_then(|seq| seq.parse().ok()).unwrap_or(0);
        let position = Position { roll, seq };
        let mut known = self.known.lock();
        if before.is_some_and(|before| before.covers(&position)) {
            *known = None;
            return Err(position.roll);
        }
        let same = known
            .take()
            .filter(|known| Arc::ptr_eq(&known.process, process) && known.position.roll == position.roll);
        let since = same.as_ref().map_or(now, |known| known.since);
        // Calls may be answered in another order than they were sent in.
        let newest = same.map(|known| known.position).filter(|newest| newest.covers(&position));
        let newest = newest.unwrap_or_else(|| position.clone());
        *known = Some(Known { process: process.clone(), position: newest, since });
        Ok(Published {
            position,
            members: list.into_keys().collect(),
            trusted_from: since + PROOF_LIFE + PROOF_MARGIN,
            until: now + PROOF_LIFE + PROOF_MARGIN,
        })
    }

    /// Notes that this process has given the list of `roll` the name `new_roll`: it is known from now on, and not only
    /// from the next write.
    pub fn note_rename(&self, process: &Arc<str>, roll: &str, new_roll: String) {
        let mut known = self.known.lock();
        if let Some(known) = known.as_mut()
            && Arc::ptr_eq(&known.process, process)
            && known.position.roll == roll
        {
            known.position.roll = new_roll;
            known.since = Instant::now();
        }
    }

    /// Notes an ack.
    pub fn hear(&self, ack: &[u8]) {
        let Some((position, member)) = std::str::from_utf8(ack).ok().and_then(|ack| ack.rsplit_once(' '))
        else {
            return;
        };
        let Some(position) = Position::parse(position) else { return };
        let mut positions = self.positions.lock();
        if positions.len() >= POSITIONS {
            positions.clear(); // writers that wait for one of them wait for the whole time
        }
        positions.insert(member.to_owned(), position);
        drop(positions);
        self.changed.notify_waiters();
    }

    /// Those of `members` that have not acknowledged `position`.
    fn silent<'a>(&self, position: &Position, members: &'a [String]) -> Vec<&'a str> {
        let positions = self.positions.lock();
        let has_acked = |member: &str| positions.get(member).is_some_and(|acked| acked.covers(position));
        members.iter().map(String::as_str).filter(|member| !has_acked(member)).collect()
    }

    async fn all(&self, position: &Position, members: &[String]) {
        loop {
            let changed = self.changed.notified();
            if self.silent(position, members).is_empty() {
                return;
            }
            changed.await;
        }
    }
}

impl Cache {
    /// Waits until no near copy is left of the keys that were published.
    pub async fn wait_for_acks(&self, published: &Published) {
        let start = Instant::now();
        let metrics = &self.0.metrics;
        let acks = &self.0.acks;
        let Published { position, members, trusted_from, until } = published;
        metrics.members.set(i64::try_from(members.len()).unwrap_or(i64::MAX));
        sleep_until((*trusted_from).min(*until).into()).await;
        let all = acks.all(position, members);
        if timeout_at((*until).into(), all).await.is_err() {
            let silent = acks.silent(position, members);
            metrics.acks_missed.inc_by(silent.len() as u64);
            // Otherwise it may be this process that hears nothing.
            if acks.silent(position, &[ECHO.to_owned()]).is_empty() {
                self.drop_members(position, &silent).await;
            }
        }
        metrics.ack_wait.observe(start.elapsed().as_secs_f64());
    }

    /// Removes `silent` members from the list of `position`, so that no other write waits for them.
    async fn drop_members(&self, position: &Position, silent: &[&str]) {
        match self.rename_members(&position.roll, silent).await {
            Ok(true) => {
                self.0.metrics.members_dropped.inc_by(silent.len() as u64);
                log::info!("near caches that did not acknowledge a write were dropped: {}", silent.len());
            }
            // Another writer has.
            Ok(false) => {}
            Err(error) => log::debug!("silent near caches were not dropped: {error:?}"),
        }
    }

    /// Gives the list of near members a new roll, and removes `members` from it, if its roll is still `roll`. Returns
    /// whether it was.
    pub(super) async fn rename_members(&self, roll: &str, members: &[&str]) -> Result<bool, CacheError> {
        let mut call = self.0.rename.key(MEMBERS);
        let new_roll = new_roll();
        call.arg(roll).arg(&new_roll);
        for member in members {
            call.arg(*member);
        }
        let call = &call;
        let ask = |mut connection| async move { call.invoke_async(&mut connection).await };
        let (renamed, process) = self.0.redis.call_or_connect(ask).await?;
        if renamed {
            self.0.acks.note_rename(&process, roll, new_roll);
        }
        Ok(renamed)
    }

    /// Hears acks for as long as the process lives. Without, writers wait for the whole time.
    pub async fn keep_hearing_acks(self) {
        loop {
            let Err(error) = self.hear_acks().await;
            log::debug!("acks are not heard: {error}");
            sleep(RECONNECT_INTERVAL).await;
        }
    }

    async fn hear_acks(&self) -> Result<Infallible, RedisError> {
        let this = self.clone();
        let apply = move |ack: &[u8]| this.0.acks.hear(ack);
        let mut connection = self.0.ack_channel.subscribe(apply).await?;
        loop {
            // A connection that has ended shows it only when it is used.
            cmd("PING").exec_async(&mut connection).await?;
            sleep(PING_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(roll: &str, seq: u64, members: &[&str]) -> HashMap<String, String> {
        let fields = members.iter().map(|member| ((*member).to_owned(), "1".to_owned()));
        let known = [("roll".to_owned(), roll.to_owned()), ("seq".to_owned(), seq.to_string())];
        fields.chain(known).collect()
    }

    fn process() -> Arc<str> {
        "run history".into()
    }

    fn is_trusted_now(published: &Published) -> bool {
        published.trusted_from < published.until
    }

    /// Acks that know `roll` from a proof's life ago.
    fn knowing(process: &Arc<str>, roll: &str, seq: u64) -> Acks {
        let acks = Acks::default();
        acks.note(process, list(roll, seq, &[]), None).expect("nothing is known yet");
        let long_ago = Instant::now().checked_sub(PROOF_LIFE * 2).expect("the machine has run for longer");
        acks.known.lock().as_mut().expect("noted").since = long_ago;
        acks
    }

    #[test]
    fn a_message_is_what_the_script_publishes() {
        let message = Message::parse(b"0a1b 17 [\"2:user:{a b}\",\"2:user:{\xc3\xa9}\"]").expect("a message");
        assert_eq!(message.position, Position { roll: "0a1b".into(), seq: 17 });
        assert_eq!(message.keys, ["2:user:{a b}", "2:user:{é}"]);
        for garbage in
            [&b"2:user:{john}"[..], b"", b"0a1b 17", b"0a1b x [\"k\"]", b"0a1b 17 [k]", b"\xff 1 [\"k\"]"]
        {
            assert_eq!(Message::parse(garbage), None);
        }
    }

    #[test]
    fn an_ack_is_for_all_messages_of_its_list_up_to_its_own() {
        let acks = Acks::default();
        let members = ["a".to_owned(), "b".to_owned()];
        let at = |roll: &str, seq| Position { roll: roll.into(), seq };
        acks.hear(at("one", 5).ack("a").as_bytes());
        assert_eq!(acks.silent(&at("one", 5), &members), ["b"]);
        assert_eq!(acks.silent(&at("one", 6), &members), ["a", "b"]);
        assert_eq!(acks.silent(&at("two", 4), &members), ["a", "b"]);
        acks.hear(at("one", 9).ack("b").as_bytes());
        assert!(acks.silent(&at("one", 4), &members).is_empty());
    }

    #[test]
    fn a_list_is_trusted_when_its_roll_has_been_known_for_as_long_as_a_proof_holds() {
        let process = process();
        let acks = Acks::default();
        let first = acks.note(&process, list("one", 1, &["a"]), None).expect("nothing is known yet");
        assert!(!is_trusted_now(&first));
        let acks = knowing(&process, "one", 1);
        let next =
            acks.note(&process, list("one", 2, &["a"]), acks.newest().as_ref()).expect("a greater number");
        assert!(is_trusted_now(&next));
        assert_eq!(next.members, ["a"]);
    }

    #[test]
    fn a_list_with_another_roll_or_on_other_connections_is_not_trusted() {
        let here = process();
        let acks = knowing(&here, "one", 1);
        assert!(!is_trusted_now(&acks.note(&here, list("two", 2, &[]), None).expect("another roll")));
        let acks = knowing(&here, "one", 1);
        // The same process, by its name, after the connection was lost.
        assert!(!is_trusted_now(
            &acks.note(&process(), list("one", 2, &[]), None).expect("a greater number")
        ));
    }

    #[test]
    fn a_number_that_does_not_grow_shows_that_the_list_was_replaced() {
        let process = process();
        let acks = knowing(&process, "one", 5);
        let before = acks.newest();
        assert_eq!(acks.note(&process, list("one", 5, &[]), before.as_ref()).err(), Some("one".into()));
        // Nothing is trusted from then on.
        assert!(!is_trusted_now(&acks.note(&process, list("one", 6, &[]), None).expect("noted")));
    }

    #[test]
    fn answers_may_arrive_in_another_order_than_calls_were_sent_in() {
        let process = process();
        let acks = knowing(&process, "one", 5);
        let before = acks.newest();
        assert!(acks.note(&process, list("one", 7, &[]), before.as_ref()).is_ok());
        assert!(acks.note(&process, list("one", 6, &[]), before.as_ref()).is_ok());
        assert_eq!(acks.newest(), Some(Position { roll: "one".into(), seq: 7 }));
    }
}
