//! Recordings of installations as they are run past one machine. Each runs for some seconds with the other tests, and for
//! minutes by `make topologies`.

mod balancer;
mod pooler;
