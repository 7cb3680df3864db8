//! Shared loads: those who ask for the same key at the same time wait for one load.
//!
//! Not everybody may share: whoever arrived after the load had read what it will answer could be handed something
//! older than a write that was acknowledged before they came. They are told when the answer was read, and judge.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::error::Error;

/// What a load came to, and when what it answers was read.
#[derive(Debug, Clone)]
pub struct Landed<T> {
    /// The result.
    pub result: Result<T, Error>,
    /// When the query behind it was sent: it has seen every write that was acknowledged by then.
    pub as_of: Instant,
}

type InTheAir<T> = Arc<Mutex<HashMap<String, watch::Receiver<Option<Landed<T>>>>>>;

/// The loads that are under way.
pub struct Flights<T>(InTheAir<T>);

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Whether a load was started or joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// This caller started it.
    Pilot,
    /// It was in the air already.
    Passenger,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Waits for the load of `key` that is under way, or for `load`, started now.
    ///
    /// The load is a task of its own: a client that hangs up does not strand those who wait with it.
    pub async fn board<F>(&self, key: &str, load: impl FnOnce() -> F) -> (Seat, Landed<T>)
    where
        F: Future<Output = Landed<T>> + Send + 'static,
    {
        let (seat, mut landing) = self.join_or_start(key, load);
        let landed = landing.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone());
        let crashed =
            || Landed { result: Err(Error::Internal("a load panicked".into())), as_of: Instant::now() };
        (seat, landed.unwrap_or_else(crashed))
    }

    fn join_or_start<F>(
        &self,
        key: &str,
        load: impl FnOnce() -> F,
    ) -> (Seat, watch::Receiver<Option<Landed<T>>>)
    where
        F: Future<Output = Landed<T>> + Send + 'static,
    {
        let mut in_the_air = lock(&self.0);
        if let Some(landing) = in_the_air.get(key) {
            return (Seat::Passenger, landing.clone());
        }
        let (land, landing) = watch::channel(None);
        in_the_air.insert(key.to_owned(), landing.clone());
        // Off the list before it lands, and also if it crashes: nobody boards what has landed.
        let listed = Listed { in_the_air: self.0.clone(), key: key.to_owned() };
        let load = load();
        tokio::spawn(async move {
            let landed = load.await;
            drop(listed);
            land.send_replace(Some(landed));
        });
        (Seat::Pilot, landing)
    }
}

struct Listed<T> {
    in_the_air: InTheAir<T>,
    key: String,
}

impl<T> Drop for Listed<T> {
    fn drop(&mut self) {
        lock(&self.in_the_air).remove(&self.key);
    }
}

fn lock<T>(in_the_air: &InTheAir<T>) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<Landed<T>>>>> {
    in_the_air.lock().unwrap_or_else(PoisonError::into_inner)
}
