//! A fleet in which the shipped brains run: one event after the other, against a clock of its own.
//!
//! ```text
//!   workload --> guest (policy) <--vsock--> agent (scaling) <--https--> extenders (ledgers)
//!                  ^                            | patch                     | requests of pods
//!                  | plugs, asks                v                           v
//!                runner <--orders-- operator (lifecycle) <--watch-- API server --> kubelets, other pods
//! ```
//!
//! What is real: the four brains, and every value that passes between them. What is modelled: their shells, the API server,
//! kubelet, kube-scheduler, QEMU and the guest's kernel, with latencies and faults. Messages take time, drawn from
//! distributions; requests have deadlines, streams keep their order. All randomness comes from the seed.
//!
//! Not modelled: migrations, and agents and extenders a version of the permits apart.

mod agent;
mod api;
mod bug;
mod chaos;
mod extender;
mod fault;
mod guest;
mod lease;
mod message;
mod object;
mod operator;
mod post;
mod process;
mod queue;
mod rest;
mod rules;
mod runner;
mod scheduler;
mod world;

pub use bug::Bug;
pub use fault::{Family, Fault, Kind, Way, Whom};
pub use guest::{Doze, Loads};
pub use message::{Link, Part, Watcher};
pub use rules::Violation;
pub use world::{GivesUp, Machine, Settings, World};
