//! wip
mod check;
mod near;
mod one_key;
