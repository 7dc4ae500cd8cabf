//! Whether the VM serves: time and facts in, yes or no out.
//!
//! A VM becomes ready when its keeper answers and one of its TCP ports accepts a connection; without a
//! declared TCP port the keeper is enough, and a port that stays shut holds readiness up for a limited time
//! only. Once ready it stays so as long as the keeper is heard: Postgres refuses connections for moments, and
//! a service must not lose its only endpoint each time.

use std::time::Duration;

/// A port that stays shut holds readiness up for this long.
const PORT_PATIENCE: Duration = Duration::from_secs(30);
/// A keeper that was not heard for this long is lost.
const KEEPER_SILENCE: Duration = Duration::from_secs(15);

/// The facts so far. Times are since any one origin.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readiness {
    needs_port: bool,
    port_open: bool,
    first_heard: Option<Duration>,
    last_heard: Option<Duration>,
    was_ready: bool,
}

impl Readiness {
    /// For a VM with or without declared TCP ports.
    pub(crate) fn new(needs_port: bool) -> Self {
        Self { needs_port, ..Self::default() }
    }

    /// The keeper answered.
    pub(crate) fn keeper_heard(&mut self, now: Duration) {
        self.first_heard.get_or_insert(now);
        self.last_heard = Some(now);
        self.update(now);
    }

    /// A TCP port of the guest accepted a connection.
    pub(crate) fn port_opened(&mut self, now: Duration) {
        self.port_open = true;
        self.update(now);
    }

    /// Whether it is still worth looking for an open port.
    pub(crate) fn wants_port(&self) -> bool {
        self.needs_port && !self.port_open
    }

    /// Whether the VM serves.
    pub(crate) fn ready(&mut self, now: Duration) -> bool {
        self.update(now);
        self.was_ready && self.heard(now)
    }

    fn heard(&self, now: Duration) -> bool {
        self.last_heard.is_some_and(|at| now.saturating_sub(at) <= KEEPER_SILENCE)
    }

    fn update(&mut self, now: Duration) {
        let patient = self.first_heard.is_some_and(|at| now.saturating_sub(at) < PORT_PATIENCE);
        let serves = !self.wants_port() || !patient;
        self.was_ready |= self.heard(now) && serves;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens at a second.
    enum At {
        Keeper(u64),
        Port(u64),
        Is(u64, bool),
    }
    use At::{Is, Keeper, Port};

    fn check(needs_port: bool, story: &[At]) {
        let seconds = |number: &u64| Duration::from_secs(*number);
        let mut readiness = Readiness::new(needs_port);
        for step in story {
            match step {
                Keeper(at) => readiness.keeper_heard(seconds(at)),
                Port(at) => readiness.port_opened(seconds(at)),
                Is(at, ready) => assert_eq!(readiness.ready(seconds(at)), *ready, "second {at}"),
            }
        }
    }

    #[test]
    fn without_a_port_the_keeper_is_enough() {
        check(false, &[Is(0, false), Is(100, false), Keeper(101), Is(101, true)]);
    }

    #[test]
    fn with_a_port_both_are_needed_in_any_order() {
        check(true, &[Keeper(1), Is(2, false), Port(3), Is(3, true)]);
        check(true, &[Port(1), Is(2, false), Keeper(3), Is(3, true)]);
    }

    #[test]
    fn a_shut_port_does_not_hold_readiness_up_for_ever() {
        check(
            true,
            &[Keeper(1), Keeper(20), Is(30, false), Keeper(30), Is(31, true), Is(32, true)],
        );
    }

    #[test]
    fn patience_ends_only_for_a_keeper_that_is_heard() {
        check(true, &[Keeper(1), Is(40, false), Keeper(41), Is(41, true)]);
    }

    #[test]
    fn silence_ends_it_and_the_keeper_brings_it_back() {
        check(true, &[Keeper(1), Port(1), Is(16, true), Is(17, false), Keeper(20), Is(20, true)]);
    }
}
