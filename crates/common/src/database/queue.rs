//! The crew's queue: bounded, and last in, first out among the threads that wait for work. The thread that has just
//! been at work is woken first: its connection and the server's process behind it are still warm, and while there is
//! little to do the others are left to sleep.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, Thread};

use super::session::Lane;

/// What a thread of the crew is to do with its connection.
pub type Job = Box<dyn FnOnce(&mut Lane) + Send>;

/// Jobs that wait for a thread, and threads that wait for a job. When it is dropped, the threads end.
pub struct Jobs {
    bound: usize,
    state: Mutex<State>,
}

struct State {
    waiting: VecDeque<Job>,
    idle: Vec<Thread>,
}

impl Jobs {
    /// None yet, and never more than `bound`.
    pub fn new(bound: usize) -> Self {
        Self { bound, state: Mutex::new(State { waiting: VecDeque::new(), idle: Vec::new() }) }
    }

    /// How many may wait.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Queues `job`; tells whether there was room.
    #[must_use]
    pub fn push(&self, job: Job) -> bool {
        let mut state = self.lock();
        if state.waiting.len() >= self.bound {
            return false;
        }
        state.waiting.push_back(job);
        let idle = state.idle.pop();
        drop(state);
        if let Some(thread) = idle {
            thread.unpark();
        }
        true
    }

    /// Waits for the next job of `jobs`; none if all who could bring one are gone.
    pub fn next(jobs: &Weak<Self>) -> Option<Job> {
        loop {
            let job = jobs.upgrade()?.next_or_idle();
            if job.is_some() {
                return job;
            }
            thread::park();
        }
    }

    /// The next job; if there is none, the calling thread is to park, and will be woken.
    fn next_or_idle(self: Arc<Self>) -> Option<Job> {
        let mut state = self.lock();
        let job = state.waiting.pop_front();
        // A thread may wake without having been woken.
        let this = thread::current();
        state.idle.retain(|thread| thread.id() != this.id());
        if job.is_none() {
            state.idle.push(this);
        }
        job
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.lock().idle.iter().for_each(Thread::unpark);
    }
}
