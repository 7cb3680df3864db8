//! The queue of the worker threads: bounded, and last in, first out among the threads that wait for a job.
//!
//! The thread that has just been at work is woken first: its memory is still in the processor's cache, and while there
//! is little to do the other threads sleep. The pool gives connections out in the same order.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};

use parking_lot::Mutex;

use super::session::Session;

/// What a worker thread does with its connection.
pub type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// Jobs that wait for a thread, and threads that wait for a job. The threads end when it is dropped.
pub struct WorkQueue {
    bound: usize,
    state: Mutex<State>,
}

struct State {
    waiting: VecDeque<Job>,
    idle: Vec<Thread>,
}

impl WorkQueue {
    /// An empty queue of at most `bound` jobs.
    pub fn new(bound: usize) -> Self {
        Self { bound, state: Mutex::new(State { waiting: VecDeque::new(), idle: Vec::new() }) }
    }

    /// How many jobs may wait.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Queues `job`. Returns whether there was room.
    #[must_use]
    pub fn push(&self, job: Job) -> bool {
        let mut state = self.state.lock();
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

    /// Waits for the next job; none if every handle that could queue one is gone.
    pub fn next(queue: &Weak<Self>) -> Option<Job> {
        loop {
            let job = queue.upgrade()?.next_or_idle();
            if job.is_some() {
                return job;
            }
            thread::park();
        }
    }

    /// The next job. If there is none, the calling thread is listed as idle: it parks, and is woken for a job.
    fn next_or_idle(self: Arc<Self>) -> Option<Job> {
        let mut state = self.state.lock();
        let job = state.waiting.pop_front();
        // A thread may wake without having been woken.
        let this = thread::current();
        state.idle.retain(|thread| thread.id() != this.id());
        if job.is_none() {
            state.idle.push(this);
        }
        job
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        for thread in &self.state.lock().idle {
            thread.unpark();
        }
    }
}
