//! The cache protocol (`docs/cache-protocol.md`), checked in every state that small systems can reach.
//!
//! Six models, each of one user, with the checker `stateright`:
//! - [`one_key`]: Postgres, Redis, readers and writers: leases, barriers, early refresh, forced reads; eviction,
//!   crashes, unanswered calls, late packets, unknown COMMITs;
//! - [`sharing`]: callers of one replica that share a load;
//! - [`near`]: a replica's near cache, its invalidation channel, and the wait of writers;
//! - [`acks`]: what lets writers wait for less: the list of near members, and their acks;
//! - [`grant`]: which of two Redis processes may be used;
//! - [`long_commit`]: COMMITs that take longer than a barrier lives.
//!
//! Every rule of the protocol can be switched off. The protocol passes with all of them. Without any one of them it
//! must fail, and the tests named `..._breaks_visible` and so on assert that it does: a check that cannot fail is no
//! check.
//!
//! ```text
//! cargo test -p common --test model -- --nocapture    # states explored, and the way to each failure
//! cargo test -p common --test model --config 'profile.test.package.common.opt-level=1' -- --ignored --nocapture
//! ```
//!
//! The second command checks the larger bounds: it takes minutes, and a few GiB of memory.

mod acks;
mod check;
mod grant;
mod long_commit;
mod near;
mod one_key;
mod sharing;
