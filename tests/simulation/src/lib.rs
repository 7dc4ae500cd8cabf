//! What the shipped brains decide, seen from outside: the parts of the program `simulate`.

pub mod demand;
pub mod goal;
pub mod load;
pub mod random;
