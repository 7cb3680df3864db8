//! Shared loads: requests that ask for the same key at the same time wait for one load.
//!
//! Not every request may share. A load that read before a request arrived may not contain a write that was
//! acknowledged by then. So each caller gets the time at which the result was read, and decides.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::Error;

/// The result of a load, for every caller that shares it.
#[derive(Debug, Clone)]
pub struct Shared<T> {
    /// The result.
    pub result: Result<T, Error>,
    /// When the query behind it was sent: it contains every write that was acknowledged by then.
    pub as_of: Instant,
}

/// The followers of each load that is under way.
type Calls<T> = Arc<Mutex<HashMap<String, Vec<oneshot::Sender<Shared<T>>>>>>;

/// The loads that are under way, at most one a key.
pub struct SingleFlight<T>(Calls<T>);

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Whether a caller started the load or joined it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It started the load.
    Leader,
    /// The load was under way already.
    Follower,
}

impl<T: Clone + Send + 'static> SingleFlight<T> {
    /// Waits for the load of `key` that is under way, or for `load`, started now.
    ///
    /// The load is a task of its own: a client that hangs up does not strand the followers.
    pub async fn join<F>(&self, key: &str, load: impl FnOnce() -> F) -> (Role, Shared<T>)
    where
        F: Future<Output = Shared<T>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let role = self.follow_or_lead(key, sender, load);
        let panicked =
            |_| Shared { result: Err(Error::Internal("a load panicked".into())), as_of: Instant::now() };
        (role, receiver.await.unwrap_or_else(panicked))
    }

    fn follow_or_lead<F>(
        &self,
        key: &str,
        sender: oneshot::Sender<Shared<T>>,
        load: impl FnOnce() -> F,
    ) -> Role
    where
        F: Future<Output = Shared<T>> + Send + 'static,
    {
        let mut calls = self.0.lock();
        if let Some(followers) = calls.get_mut(key) {
            followers.push(sender);
            return Role::Follower;
        }
        calls.insert(key.to_owned(), Vec::new());
        drop(calls);
        let mut call = CallGuard { calls: self.0.clone(), key: Some(key.to_owned()) };
        // Boxed, since a task is moved several times before it rests.
        let load = Box::pin(load());
        tokio::spawn(async move {
            let shared = load.await;
            // The call is removed before the result is sent, so that no caller joins a finished load. A caller may
            // have hung up: a result that cannot be sent is not needed.
            for follower in call.finish() {
                let _ = follower.send(shared.clone());
            }
            let _ = sender.send(shared);
        });
        Role::Leader
    }
}

/// The entry of a load among the calls. It is removed also if the load panics.
struct CallGuard<T> {
    calls: Calls<T>,
    /// None once the entry is removed: the key's next load may have an entry by then.
    key: Option<String>,
}

impl<T> CallGuard<T> {
    /// Removes the entry; returns the followers.
    fn finish(&mut self) -> Vec<oneshot::Sender<Shared<T>>> {
        let followers = self.key.take().and_then(|key| self.calls.lock().remove(&key));
        followers.unwrap_or_default()
    }
}

impl<T> Drop for CallGuard<T> {
    fn drop(&mut self) {
        self.finish();
    }
}
