//! What the agent does to the outside, one module for each counterparty. An effect has a deadline and ends in
//! a value; it decides nothing.

pub(crate) mod guest;
pub(crate) mod scheduler;
pub(crate) mod vm;
