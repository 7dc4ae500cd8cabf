//! host-runner

fn main() {}
