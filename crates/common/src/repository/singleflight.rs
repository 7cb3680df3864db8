//! Shared loads: those who ask for the same key at the same time wait for one load.
//!
//! Not everybody may share: whoever arrived after the load had read what it will answer could be handed something
//! older than a write that was acknowledged before they came. They are told when the answer was read, and judge.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::error::Error;

/// What a load came to, and when what it answers was read.
#[derive(Debug, Clone)]
pub struct Landed<T> {
    /// The result.
    pub result: Result<T, Error>,
    /// When the query behind it was sent: it has seen every write that was acknowledged by then.
    pub as_of: Instant,
}

/// Who waits for each load, beside who started it.
type InTheAir<T> = Arc<Mutex<HashMap<String, Vec<oneshot::Sender<Landed<T>>>>>>;

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

impl<T: Clone + Send + 'static> Flights<T> {
    /// Waits for the load of `key` that is under way, or for `load`, started now.
    ///
    /// The load is a task of its own: a client that hangs up does not strand those who wait with it.
    pub async fn board<F>(&self, key: &str, load: impl FnOnce() -> F) -> (Seat, Landed<T>)
    where
        F: Future<Output = Landed<T>> + Send + 'static,
    {
        let (land, landing) = oneshot::channel();
        let seat = self.join_or_start(key, land, load);
        let crashed =
            |_| Landed { result: Err(Error::Internal("a load panicked".into())), as_of: Instant::now() };
        (seat, landing.await.unwrap_or_else(crashed))
    }

    fn join_or_start<F>(&self, key: &str, land: oneshot::Sender<Landed<T>>, load: impl FnOnce() -> F) -> Seat
    where
        F: Future<Output = Landed<T>> + Send + 'static,
    {
        let mut in_the_air = lock(&self.0);
        if let Some(passengers) = in_the_air.get_mut(key) {
            passengers.push(land);
            return Seat::Passenger;
        }
        in_the_air.insert(key.to_owned(), Vec::new());
        drop(in_the_air);
        let mut listed = Listed { in_the_air: self.0.clone(), key: Some(key.to_owned()) };
        // Boxed, since a task is moved about before it rests.
        let load = Box::pin(load());
        tokio::spawn(async move {
            let landed = load.await;
            // Off the list before it lands: nobody boards what has landed. Whoever asked may be gone: then nobody is
            // left to tell.
            for passenger in listed.take_off() {
                drop(passenger.send(landed.clone()));
            }
            drop(land.send(landed));
        });
        Seat::Pilot
    }
}

/// A load's place on the list, which it leaves also if it crashes.
struct Listed<T> {
    in_the_air: InTheAir<T>,
    /// None once it has left: the next load of the key may be on the list by then.
    key: Option<String>,
}

impl<T> Listed<T> {
    /// Leaves the list; returns who waits.
    fn take_off(&mut self) -> Vec<oneshot::Sender<Landed<T>>> {
        let passengers = self.key.take().and_then(|key| lock(&self.in_the_air).remove(&key));
        passengers.unwrap_or_default()
    }
}

impl<T> Drop for Listed<T> {
    fn drop(&mut self) {
        self.take_off();
    }
}

fn lock<T>(in_the_air: &InTheAir<T>) -> MutexGuard<'_, HashMap<String, Vec<oneshot::Sender<Landed<T>>>>> {
    in_the_air.lock().unwrap_or_else(PoisonError::into_inner)
}
