//! images-allocate-loop

fn main() {}
