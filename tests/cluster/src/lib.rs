//! A local Kubernetes cluster on one machine, built from sources and packages alone, and what is tested on it.

pub mod archive;
pub mod artifacts;
pub mod cache;
pub mod cgroup;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod control_plane;
pub mod demo;
pub mod deploy;
pub mod down;
pub mod interrupt;
pub mod layout;
pub mod network;
pub mod node;
pub mod options;
pub mod pki;
pub mod process;
pub mod progress;
pub mod scenarios;
pub mod small_images;
pub mod system;
pub mod tally;
pub mod tools;
pub mod up;
