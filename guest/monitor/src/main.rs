//! guest-monitor

fn main() {}
