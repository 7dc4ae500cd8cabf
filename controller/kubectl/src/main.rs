//! controller-kubectl

fn main() {}
