//! Whether PostgreSQL holds what a target acknowledged: every registered user, every replaced info that no later
//! replace has overwritten, and nothing that was not sent; and whether reads were older than a replace that had been
//! acknowledged when they were sent. Afterwards the seeded users are as they were.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Instant;

use crate::load::Load;
use crate::names::{Requests, Series, Writes, version};
use crate::stores::Stores;
use crate::tally::{Sent, Tally, Write};
use crate::targets::Kind;

/// How many wrong users are named.
const NAMED: usize = 3;

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Users that were written.
    pub checked: u64,
    /// Users that are not as acknowledged, and old reads of ours. The peers do not promise that reads are never old.
    pub wrong: u64,
}

/// Compares the writes of a load with the database of `kind`, whose programs have ended. Then undoes those that change
/// what other loads read, so that each begins with the same table. `users` users are seeded.
pub fn settle(stores: &Stores, kind: Kind, load: &Load, tally: &Tally, users: u32) -> Compared {
    stores.wait_for_sessions(kind.name());
    let mut compared = Compared::default();
    for (index, part) in load.parts.iter().enumerate() {
        let of_part = tally.writes.iter().filter(|write| write.part == index);
        let mut writes: HashMap<u32, Vec<Write>> = HashMap::new();
        for write in of_part {
            writes.entry(write.number).or_default().push(*write);
        }
        let Some(numbers) = range(&writes) else { continue };
        let names = Names { series: part.requests.series, numbers, info_bytes: part.requests.info_bytes };
        let rows = names.read(stores, kind, part.requests.writes);
        let wrong = wrong(&part.requests, &writes, &rows);
        compared.checked += writes.len() as u64;
        compared.wrong += wrong.len() as u64;
        compared.wrong += old_reads(kind, &tally.reads, &writes);
        if !wrong.is_empty() {
            let some: Vec<String> =
                wrong.iter().take(NAMED).map(|number| names.series.name(*number)).collect();
            eprintln!(
                "{}: {} users are not as acknowledged, such as {}",
                kind.name(),
                wrong.len(),
                some.join(", ")
            );
        }
        if names.series == Series::Seeded {
            names.undo(stores, kind, users);
        }
    }
    compared
}

/// Says how many of the compared reads were old, and returns how many of them were not allowed.
fn old_reads(kind: Kind, reads: &[Sent], writes: &HashMap<u32, Vec<Write>>) -> u64 {
    let is_old = |read: &&Sent| writes.get(&read.number).is_some_and(|writes| is_old(read, writes));
    let old = reads.iter().filter(is_old).count();
    if old > 0 {
        eprintln!(
            "{}: {old} of {} compared reads were older than an acknowledged write",
            kind.name(),
            reads.len()
        );
    }
    if matches!(kind, Kind::Ours | Kind::Before | Kind::Token) { old as u64 } else { 0 }
}

/// Whether a replace had been acknowledged when the read was sent, that began after the one whose info was read had
/// ended.
fn is_old(read: &Sent, writes: &[Write]) -> bool {
    let ended = |version| writes.iter().find(|write| write.version == version)?.acknowledged;
    let is_newer =
        |write: &Write| read.version == 0 || ended(read.version).is_some_and(|end| write.sent > end);
    writes.iter().any(|write| write.acknowledged.is_some_and(|end| end < read.at) && is_newer(write))
}

fn range<T>(writes: &HashMap<u32, T>) -> Option<RangeInclusive<u32>> {
    Some(*writes.keys().min()?..=*writes.keys().max()?)
}

/// The numbers of users that differ from what was acknowledged. `rows` holds the infos that were found: of all users,
/// or, if infos are replaced, of those that no longer have their first one.
fn wrong(requests: &Requests, writes: &HashMap<u32, Vec<Write>>, rows: &HashMap<u32, String>) -> Vec<u32> {
    let is_right = |number: &u32| {
        let Some(writes) = writes.get(number) else { return false };
        let Some(found) = rows.get(number) else {
            return writes.iter().all(|write| write.acknowledged.is_none());
        };
        let version = version(&requests.series.name(*number), found, requests.info_bytes);
        writes.iter().any(|write| Some(write.version) == version && !is_overwritten(write, writes))
    };
    let missing = writes.keys().filter(|number| !rows.contains_key(number));
    rows.keys().chain(missing).filter(|number| !is_right(number)).copied().collect()
}

/// Whether another write of the same user began after this one had ended, and was acknowledged.
fn is_overwritten(write: &Write, writes: &[Write]) -> bool {
    let ended = |end: Instant| writes.iter().any(|it| it.acknowledged.is_some() && it.sent > end);
    write.acknowledged.is_some_and(ended)
}

/// Users of one series.
struct Names {
    series: Series,
    numbers: RangeInclusive<u32>,
    info_bytes: usize,
}

impl Names {
    fn condition(&self) -> String {
        let [first, last] =
            [self.numbers.start(), self.numbers.end()].map(|number| self.series.name(*number));
        format!("name BETWEEN '{first}' AND '{last}'")
    }

    fn is_changed(&self) -> String {
        format!("info <> rpad(name, {}, 'x')", self.info_bytes)
    }

    /// The infos of all of them, or of those that no longer have their first one.
    fn read(&self, stores: &Stores, kind: Kind, writes: Writes) -> HashMap<u32, String> {
        let mut select = format!("SELECT name, info FROM users WHERE {}", self.condition());
        if writes == Writes::Info {
            select = format!("{select} AND {}", self.is_changed());
        }
        let text = stores.sql(kind.name(), &select);
        let row = |line: &str| {
            let (name, info) = line.split_once('|')?;
            Some((name[1..].parse().ok()?, info.to_owned()))
        };
        text.lines().map(|line| row(line).unwrap_or_else(|| panic!("not a user: {line}"))).collect()
    }

    /// Gives seeded users their first info, and removes the others.
    fn undo(&self, stores: &Stores, kind: Kind, users: u32) {
        let condition = self.condition();
        let first_new = self.series.name(users);
        for statement in [
            format!("DELETE FROM users WHERE {condition} AND name >= '{first_new}'"),
            format!(
                "UPDATE users SET info = rpad(name, {}, 'x') WHERE {condition} AND {}",
                self.info_bytes,
                self.is_changed()
            ),
            "VACUUM users".to_owned(),
        ] {
            stores.sql(kind.name(), &statement);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::*;
    use crate::names::info;

    const BYTES: usize = 30;

    /// The same for all writes of a test.
    fn start() -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START
    }

    /// A replace of user 1 that is sent at `sent` and answered at `acknowledged`, in seconds.
    fn write(version: u32, sent: u64, acknowledged: Option<u64>) -> Write {
        let at = |seconds| start() + Duration::from_secs(seconds);
        Write { part: 0, number: 1, version, sent: at(sent), acknowledged: acknowledged.map(at) }
    }

    /// The wrong users after these writes of user 1, with `found` in its row if it has no longer its first info.
    fn wrong_after(writes: &[Write], found: Option<u32>) -> Vec<u32> {
        let requests = Requests::replace(([127, 0, 0, 1], 1).into(), BYTES);
        let name = Series::Seeded.name(1);
        let info = |version: u32| info(&format!("{name}{version:09}"), BYTES);
        let rows = found.map(|version| (1, info(version))).into_iter().collect();
        wrong(&requests, &HashMap::from([(1, writes.to_vec())]), &rows)
    }

    #[test]
    fn the_last_acknowledged_info_is_right() {
        let writes = [write(7, 1, Some(2)), write(8, 3, Some(4))];
        assert!(wrong_after(&writes, Some(8)).is_empty());
        assert_eq!(wrong_after(&writes, Some(7)), [1], "an acknowledged write is lost");
        assert_eq!(wrong_after(&writes, None), [1], "both are lost");
        assert_eq!(wrong_after(&writes, Some(9)), [1], "nobody wrote it");
    }

    #[test]
    fn of_writes_at_once_any_may_be_the_last() {
        let writes = [write(7, 1, Some(3)), write(8, 2, Some(4))];
        assert!(wrong_after(&writes, Some(7)).is_empty());
        assert!(wrong_after(&writes, Some(8)).is_empty());
    }

    #[test]
    fn a_write_without_an_answer_may_have_happened_at_any_time() {
        let writes = [write(7, 1, None), write(8, 3, Some(4))];
        assert!(wrong_after(&writes, Some(7)).is_empty());
        assert!(wrong_after(&writes[..1], None).is_empty());
        assert!(wrong_after(&writes[..1], Some(7)).is_empty());
    }

    #[test]
    fn a_read_is_old_if_a_later_write_was_acknowledged_before_it() {
        let writes = [write(7, 1, Some(3)), write(8, 2, Some(4)), write(9, 5, Some(6))];
        let is_old = |version, at| is_old(&Sent { number: 1, version, at: write(0, at, None).sent }, &writes);
        assert!(!is_old(0, 2) && is_old(0, 4), "its first info");
        assert!(!is_old(7, 5) && !is_old(8, 5), "of writes at once any may be the last");
        assert!(is_old(7, 7) && is_old(8, 7) && !is_old(9, 7));
        assert!(!is_old(8, 6), "the write has not ended before the read is sent");
    }

    #[test]
    fn a_user_that_nobody_wrote_is_wrong() {
        let requests = Requests::register(([127, 0, 0, 1], 1).into(), Series::Registered, BYTES);
        let row = |number| (number, info(&Series::Registered.name(number), BYTES));
        let writes = HashMap::from([(1, vec![write(0, 1, Some(2))])]);
        assert!(wrong(&requests, &writes, &HashMap::from([row(1)])).is_empty());
        assert_eq!(wrong(&requests, &writes, &HashMap::from([row(1), row(2)])), [2]);
        assert_eq!(wrong(&requests, &writes, &HashMap::new()), [1]);
    }
}
