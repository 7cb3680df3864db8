//! The numbers of the users that are requested, and how they are distributed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use fastrand::Rng;

/// A prime larger than any count of numbers. It has no factor in common with a count, so that steps of it visit every
/// number.
const PRIME: u32 = 2_147_483_647;

/// The numbers whose users are requested.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// Always this one.
    One(u32),
    /// Any below this, all equally likely.
    Below(u32),
    /// Any of a prepared sample, such as [`zipf`]'s.
    Drawn(Arc<[u32]>),
    /// Each once, until all are used.
    Once(Once),
    /// The next new one.
    New(Newest),
    /// The newest one less any of a prepared sample.
    Latest(Newest, Arc<[u32]>),
}

impl Numbers {
    /// Draws the next number. `None` if all are used.
    pub fn next(&self, random: &mut Rng) -> Option<u32> {
        match self {
            Numbers::One(number) => Some(*number),
            Numbers::Below(end) => Some(random.u32(..end)),
            Numbers::Drawn(drawn) => Some(drawn[random.usize(..drawn.len())]),
            Numbers::Once(once) => once.next(),
            Numbers::New(newest) => newest.next(),
            Numbers::Latest(newest, ranks) => Some(newest.number() - ranks[random.usize(..ranks.len())]),
        }
    }

    /// Notes that the user of a new number is registered.
    pub fn acknowledge(&self, number: u32) {
        if let Numbers::New(newest) = self {
            newest.acknowledge(number);
        }
    }
}

/// Numbers from a range, each returned once, in an order that jumps around.
#[derive(Clone, Debug)]
pub struct Once {
    first: u32,
    count: u32,
    step: u32,
    end: u32,
    used: Arc<AtomicU32>,
}

impl Once {
    /// The numbers from `first` on.
    pub fn new(first: u32, count: u32) -> Once {
        Once { first, count, step: PRIME % count.max(1), end: count, used: Arc::default() }
    }

    /// The same in ascending order.
    pub fn ordered(first: u32, count: u32) -> Once {
        Once { step: 1, ..Once::new(first, count) }
    }

    /// The same number `times` times.
    pub fn same(number: u32, times: u32) -> Once {
        Once { step: 0, ..Once::new(number, times) }
    }

    /// No more than `end` of the numbers.
    pub fn up_to(self, end: u32) -> Once {
        Once { end: end.min(self.count), ..self }
    }

    /// The same numbers from the start.
    pub fn again(&self) -> Once {
        Once { used: Arc::default(), ..self.clone() }
    }

    /// Takes the next `count` numbers. Only for an ascending order.
    pub fn portion(&self, count: u32) -> Once {
        Once::ordered(self.first + self.used.fetch_add(count, Ordering::Relaxed), count)
    }

    fn next(&self) -> Option<u32> {
        let used = self.used.fetch_add(1, Ordering::Relaxed);
        (used < self.end).then(|| self.first + nth(used, self.step, self.count))
    }
}

fn nth(index: u32, step: u32, count: u32) -> u32 {
    (u64::from(index) * u64::from(step) % u64::from(count.max(1))) as u32
}

/// Numbers of new users, in ascending order, and the newest one that is known to be registered, with all before it.
#[derive(Clone, Debug)]
pub struct Newest(Arc<Registered>);

#[derive(Debug)]
struct Registered {
    first: u32,
    next: AtomicU32,
    /// The first number that is not known to be registered.
    end: AtomicU32,
    /// For each number from `first` on, whether its user is registered.
    known: Vec<AtomicBool>,
}

impl Newest {
    /// New users are registered from `first` on, at most `count` of them. All before are registered.
    pub fn new(first: u32, count: usize) -> Newest {
        let known = std::iter::repeat_with(AtomicBool::default).take(count).collect();
        Newest(Arc::new(Registered { first, next: first.into(), end: first.into(), known }))
    }

    fn next(&self) -> Option<u32> {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.known(number).is_some().then_some(number)
    }

    fn known(&self, number: u32) -> Option<&AtomicBool> {
        self.0.known.get((number - self.0.first) as usize)
    }

    /// The newest number of a registered user.
    fn number(&self) -> u32 {
        self.0.end.load(Ordering::Acquire) - 1
    }

    fn acknowledge(&self, number: u32) {
        if let Some(known) = self.known(number) {
            known.store(true, Ordering::SeqCst);
        }
        let is_known = |number| self.known(number).is_some_and(|known| known.load(Ordering::SeqCst));
        let mut end = self.0.end.load(Ordering::SeqCst);
        while is_known(end) {
            end = self.0.end.fetch_max(end + 1, Ordering::SeqCst).max(end + 1);
        }
    }
}

/// A million draws from `0..count`, where the k-th number's share is proportional to 1/k to the power of `exponent`.
pub fn zipf(count: u32, exponent: f64) -> Arc<[u32]> {
    let mut sum = 0.0;
    let mut cumulated = Vec::new();
    for rank in 1..=count {
        sum += f64::from(rank).powf(-exponent);
        cumulated.push(sum);
    }
    let mut random = Rng::with_seed(1);
    let mut draw = || {
        let point = random.f64() * sum;
        (cumulated.partition_point(|below| *below <= point) as u32).min(count - 1)
    };
    (0..1 << 20).map(|_| draw()).collect()
}

/// The same draws with popular numbers strewn over all of `0..count`, as YCSB's scrambled Zipfian does. Otherwise the
/// most popular users would be neighbours in the table. [`Once::new`] returns the numbers from the most popular on.
pub fn scrambled(drawn: &[u32], count: u32) -> Arc<[u32]> {
    drawn.iter().map(|&rank| nth(rank, PRIME % count, count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_returned_once_and_not_in_order() {
        let once = Once::new(1_000, 10_000);
        let mut returned: Vec<u32> = std::iter::from_fn(|| once.next()).collect();
        assert!(!returned.is_sorted());
        returned.sort_unstable();
        assert_eq!(returned, (1_000..11_000).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_of_a_thousand_is_drawn_as_often_as_zipfs_law_says() {
        let drawn = zipf(1_000, 1.0);
        let first = drawn.iter().filter(|number| **number == 0).count() as f64 / drawn.len() as f64;
        assert!((first - 1.0 / 7.485).abs() < 0.002, "{first}");
    }

    #[test]
    fn the_most_popular_numbers_come_first() {
        let scrambled = scrambled(&[0, 1, 2], 100_000);
        let once = Once::new(0, 100_000).up_to(3);
        assert_eq!(std::iter::from_fn(|| once.next()).collect::<Vec<_>>(), scrambled.to_vec());
    }

    #[test]
    fn the_newest_number_is_one_before_which_all_are_registered() {
        let newest = Newest::new(10, 3);
        assert_eq!(
            [newest.next(), newest.next(), newest.next(), newest.next()],
            [Some(10), Some(11), Some(12), None]
        );
        newest.acknowledge(11);
        assert_eq!(newest.number(), 9);
        newest.acknowledge(10);
        assert_eq!(newest.number(), 11);
        newest.acknowledge(12);
        assert_eq!(newest.number(), 12);
    }
}
