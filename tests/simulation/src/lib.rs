//! What the shipped brains decide, seen from outside: the parts of the program `simulate`.

pub mod baseline;
pub mod command;
pub mod compare;
pub mod demand;
pub mod fleet;
pub mod goal;
pub mod held;
mod json;
mod line;
pub mod load;
pub mod policy;
pub mod quality;
pub mod random;
pub mod replay;
pub mod report;
pub mod run;
pub mod search;
pub mod timeline;
pub mod workload;
