//! controller-operator

fn main() {}
