//! Is a VM stuck? The reference's definition: its guest was not heard for too long, or too many requests failed
//! within an interval. Shown as metric and log line; nothing is decided from it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{FileConfig, Rate};

/// Failures within an interval.
#[derive(Debug)]
struct Failures {
    rate: Rate,
    at: VecDeque<Instant>,
}

impl Failures {
    fn new(rate: Rate) -> Self {
        Self { rate, at: VecDeque::new() }
    }

    fn count(&mut self, now: Instant) {
        self.forget(now);
        let most = usize::try_from(self.rate.threshold).unwrap_or(usize::MAX).saturating_add(1);
        if self.at.len() >= most {
            self.at.pop_front(); // one more than the threshold is all that matters
        }
        self.at.push_back(now);
    }

    fn too_many(&mut self, now: Instant) -> bool {
        self.forget(now);
        u64::try_from(self.at.len()).unwrap_or(u64::MAX) > self.rate.threshold
    }

    fn forget(&mut self, now: Instant) {
        let interval = self.rate.interval;
        while self.at.front().is_some_and(|at| now.saturating_duration_since(*at) > interval) {
            self.at.pop_front();
        }
    }
}

/// What is watched of one VM.
#[derive(Debug)]
pub(crate) struct Health {
    since: Instant,
    heard: Option<Instant>,
    silence: Duration,
    startup_grace: Duration,
    guest: Failures,
    scheduler: Failures,
    vm: Failures,
}

impl Health {
    pub(crate) fn new(config: &FileConfig, now: Instant) -> Self {
        Self {
            since: now,
            heard: None,
            silence: config.guest.unhealthy_after,
            startup_grace: config.guest.startup_grace,
            guest: Failures::new(config.guest.failures),
            scheduler: Failures::new(config.scheduler.failures),
            vm: Failures::new(config.vm.failures),
        }
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    pub(crate) fn guest_failed(&mut self, now: Instant) {
        self.guest.count(now);
    }

    /// A denial counts, too.
    pub(crate) fn scheduler_failed(&mut self, now: Instant) {
        self.scheduler.count(now);
    }

    pub(crate) fn patch_failed(&mut self, now: Instant) {
        self.vm.count(now);
    }

    /// Why the VM is stuck, if it is.
    pub(crate) fn stuck(&mut self, now: Instant) -> Option<&'static str> {
        let (since, limit) = match self.heard {
            Some(heard) => (heard, self.silence),
            None => (self.since, self.startup_grace),
        };
        if now.saturating_duration_since(since) > limit {
            Some("the guest is not heard")
        } else if self.guest.too_many(now) {
            Some("too many requests to the guest failed")
        } else if self.scheduler.too_many(now) {
            Some("too many permits failed or were denied")
        } else if self.vm.too_many(now) {
            Some("too many patches failed")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_failures_make_a_vm_stuck_until_they_are_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut health = Health::new(&crate::config::shipped(), start);
        assert_eq!(health.stuck(at(20)), None, "grace at the start");
        assert_eq!(health.stuck(at(21)), Some("the guest is not heard"));
        health.heard(at(22));
        assert_eq!(health.stuck(at(40)), None);
        for second in [40, 41, 42] {
            health.patch_failed(at(second));
            health.heard(at(second));
        }
        assert_eq!(health.stuck(at(43)), Some("too many patches failed"));
        health.heard(at(161));
        assert_eq!(health.stuck(at(161)), None, "forgotten after the interval");
    }
}
