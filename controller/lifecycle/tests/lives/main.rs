//! Whole lives of one VM in a small world: stories (`scenarios`) and random ones (`properties`).

mod properties;
mod scenarios;
mod world;
