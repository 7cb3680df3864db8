//! The budgets of clients that are known by nothing but their address, in bounded memory.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use governor::RateLimiter;
use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::limiter::{Decision, decide};
use super::rate::Rate;

/// How many addresses are known at most: about 4 MB.
const ADDRESSES_MAX: usize = 100_000;
/// The map is locked in parts, so that workers seldom wait for each other, and for a sweep only briefly.
const PARTS: usize = 16;
const PART_MAX: usize = ADDRESSES_MAX / PARTS;

/// A budget for each address.
#[derive(Debug)]
pub struct Addresses<C: Clock> {
    rate: Rate,
    budgets: RateLimiter<IpAddr, Store, C, StateInformationMiddleware>,
}

impl<C: Clock> Addresses<C> {
    /// Full budgets for all. `full` is notified when there is no room for one more address.
    pub fn new(rate: Rate, clock: C, full: Arc<Notify>) -> Self {
        Self { rate, budgets: RateLimiter::new(rate.quota(), Store::new(full), clock) }
    }

    /// Takes one request from the budget of `address`.
    pub fn check(&self, address: IpAddr) -> Decision {
        decide(self.rate, self.budgets.check_key(&client(address)), self.budgets.clock())
    }

    /// Forgets the addresses whose budgets are full again.
    pub fn sweep(&self) {
        self.budgets.retain_recent();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.budgets.len()
    }
}

/// Whom an address stands for. An IPv6 client usually has a whole /64, and would have as many budgets.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

/// Not governor's own map, which cannot say how many addresses it holds without locking all of itself.
#[derive(Debug)]
struct Store {
    /// Its seed is random: no client can choose addresses that fall into one part.
    hasher: RandomState,
    parts: [Mutex<HashMap<IpAddr, InMemoryState>>; PARTS],
    /// The budget that all others share while there is no room for one more.
    others: InMemoryState,
    full: Arc<Notify>,
}

impl Store {
    fn new(full: Arc<Notify>) -> Self {
        Self { hasher: RandomState::new(), parts: Default::default(), others: InMemoryState::default(), full }
    }
}

impl StateStore for Store {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, address: &IpAddr, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let part = self.hasher.hash_one(address) % PARTS as u64;
        let mut part = self.parts[part as usize].lock();
        if let Some(state) = part.get(address) {
            return state.measure_and_replace(&NotKeyed::NonKey, measure);
        }
        if part.len() < PART_MAX {
            return part.entry(*address).or_default().measure_and_replace(&NotKeyed::NonKey, measure);
        }
        drop(part);
        self.full.notify_one();
        self.others.measure_and_replace(&NotKeyed::NonKey, measure)
    }
}

impl ShrinkableKeyedStateStore<IpAddr> for Store {
    fn retain_recent(&self, drop_below: Nanos) {
        for part in &self.parts {
            part.lock().retain(|_, state| full_at(state) > Some(drop_below));
        }
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// When the budget is full again. A measurement that fails changes nothing, and is the only way to read it.
fn full_at(state: &InMemoryState) -> Option<Nanos> {
    let read = |at| Err::<((), Nanos), _>(at);
    state.measure_and_replace(&NotKeyed::NonKey, read).err().flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;

    fn addresses(rate: &str) -> (Addresses<FakeRelativeClock>, FakeRelativeClock, Arc<Notify>) {
        let clock = FakeRelativeClock::default();
        let full = Arc::new(Notify::new());
        let addresses = Addresses::new(rate.parse().expect("a rate"), clock.clone(), full.clone());
        (addresses, clock, full)
    }

    fn is_allowed(addresses: &Addresses<FakeRelativeClock>, address: IpAddr) -> bool {
        matches!(addresses.check(address), Decision::Allowed(_))
    }

    fn number(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_flood_of_one_client_leaves_the_budget_of_another() {
        let (addresses, ..) = addresses("10/s");
        let passed = (0..1_000).filter(|_| is_allowed(&addresses, number(1))).count();
        assert_eq!(passed, 10);
        let passed = (0..1_000).filter(|_| is_allowed(&addresses, number(2))).count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn the_addresses_of_an_ipv6_64_and_both_forms_of_an_ipv4_address_are_one_client() {
        for (one, other, are_one) in [
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", true),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", false),
            ("192.0.2.1", "::192.0.2.1", false),
        ] {
            let (addresses, ..) = addresses("1/m,burst=1");
            assert!(is_allowed(&addresses, ip(one)));
            assert_eq!(!is_allowed(&addresses, ip(other)), are_one, "{one} {other}");
        }
    }

    #[test]
    fn a_million_addresses_keep_the_map_within_its_bound_and_known_ones_their_budgets() {
        let (addresses, ..) = addresses("1/s,burst=2");
        let mut passed = 0;
        for address in 0..1_000_000 {
            passed += usize::from(is_allowed(&addresses, number(address)));
        }
        let known = addresses.len();
        assert!((90_000..=ADDRESSES_MAX).contains(&known), "{known}");
        // All others share one budget.
        assert_eq!(passed, known + 2);
        assert!(is_allowed(&addresses, number(0)));
        assert!(!is_allowed(&addresses, number(0)));
    }

    #[test]
    fn a_sweep_forgets_only_budgets_that_are_full_again_and_makes_room() {
        let (addresses, clock, full) = addresses("1/s,burst=4");
        for _ in 0..4 {
            assert!(is_allowed(&addresses, number(u32::MAX)));
        }
        for address in 0..ADDRESSES_MAX as u32 * 2 {
            let _ = is_allowed(&addresses, number(address));
        }
        assert!(futures_util::FutureExt::now_or_never(full.notified()).is_some());
        addresses.sweep();
        assert!(addresses.len() > 90_000, "none of them is full again");
        clock.advance(Duration::from_secs(2));
        addresses.sweep();
        assert_eq!(addresses.len(), 1);
        let passed = (0..10).filter(|_| is_allowed(&addresses, number(u32::MAX))).count();
        assert_eq!(passed, 2, "what two seconds have added");
        clock.advance(Duration::from_secs(5));
        addresses.sweep();
        assert_eq!(addresses.len(), 0);
    }
}
