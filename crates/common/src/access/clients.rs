//! The token list in use, with the budgets of its clients.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::sync::Arc;

use super::limiter::Limiter;
use super::list::{Entry, TokenList};
use super::rate::RateLimit;
use super::token::Digest;

/// A token list and, for each client that has a limit, its budget: all of a client's tokens share it.
pub struct Clients {
    pub list: TokenList,
    budgets: HashMap<Arc<str>, Arc<Limiter>>,
}

impl Clients {
    /// The clients of `list`. `limit` is for those whose lines name none. A client that is among `former` with the same
    /// rate keeps its budget: a reload must not refill it.
    pub fn new(list: TokenList, limit: RateLimit, former: Option<&Self>) -> Self {
        let mut budgets = HashMap::new();
        for entry in list.entries() {
            let RateLimit::To(rate) = entry.rate.unwrap_or(limit) else { continue };
            if let Place::Vacant(place) = budgets.entry(entry.name.clone()) {
                let kept = former.and_then(|former| former.budgets.get(&entry.name));
                let kept = kept.filter(|budget| budget.rate() == rate).cloned();
                place.insert(kept.unwrap_or_else(|| Arc::new(Limiter::new(rate))));
            }
        }
        Self { list, budgets }
    }

    /// The entry of the token with this digest.
    pub fn find(&self, digest: &Digest) -> Option<&Entry> {
        self.list.find(digest)
    }

    /// The budget of the client `name`, if it has a limit.
    pub fn budget(&self, name: &str) -> Option<Arc<Limiter>> {
        self.budgets.get(name).cloned()
    }
}
