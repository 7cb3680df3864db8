//! Recordings of systems that are more than one of each: the short form of each is in the suite, the long one is run by
//! `make topologies`.

mod pooler;
