//! scheduler-extender

fn main() {}
