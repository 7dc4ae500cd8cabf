//! Which policy, its numbers, and those of the retries. Every number is configuration.

use std::time::Duration;

use guest_units::{Bytes, MilliCpu};

use crate::reference::{ComputeUnit, ReferenceConfig};

/// How a VM is scaled: where its goal comes from, and when failed requests are repeated.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Policy {
    /// Where the goal comes from.
    pub rules: Rules,
    /// Pauses after failures and refusals.
    pub retries: Retries,
}

impl Policy {
    /// The policy `reference` with the reference's own timers.
    #[must_use]
    pub fn reference(config: ReferenceConfig, unit: ComputeUnit) -> Self {
        let rules = Rules::Reference(Reference { config, unit, ..Reference::default() });
        Self { rules, retries: Retries::default().like_reference() }
    }
}

/// Where the goal comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rules {
    /// What the guest says that it needs, and a reserve.
    Headroom(Headroom),
    /// Load averages, memory in use and the cache's windows, in compute units.
    Reference(Reference),
}

impl Default for Rules {
    fn default() -> Self {
        Self::Headroom(Headroom::default())
    }
}

/// Up at once to the goal, down one compute unit for each agreement of the guest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reference {
    /// Numbers of the goal.
    pub config: ReferenceConfig,
    /// The step of sizes.
    pub unit: ComputeUnit,
    /// How long the guest's wish for more counts.
    pub requested_valid: Duration,
    /// A guest that was not heard for this long is never shrunk.
    pub silence: Duration,
}

impl Default for Reference {
    fn default() -> Self {
        Self {
            config: ReferenceConfig::default(),
            unit: ComputeUnit::SHIPPED,
            requested_valid: Duration::from_secs(10),
            silence: Duration::from_secs(30),
        }
    }
}

/// Size = demand + headroom. Up at once, down in steps after a calm spell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headroom {
    /// CPU sizes are multiples of this, except at the bounds.
    pub cpu_grid: MilliCpu,
    /// CPU above the demand, in percent of it.
    pub cpu_headroom_percent: u32,
    /// CPU above the demand, at least.
    pub cpu_headroom_min: MilliCpu,
    /// CPU shrinks when the demand was lower for this long.
    pub cpu_calm: Duration,
    /// Memory above the demand, in percent of it.
    pub memory_reserve_percent: u32,
    /// Memory above the demand, at least.
    pub memory_reserve_min: Bytes,
    /// Memory shrinks when the demand was lower for this long.
    pub memory_calm: Duration,
    /// Time between two steps down.
    pub step_pause: Duration,
    /// A guest that was not heard for this long is never shrunk.
    pub silence: Duration,
}

impl Default for Headroom {
    fn default() -> Self {
        Self {
            cpu_grid: MilliCpu(250),
            cpu_headroom_percent: 20,
            cpu_headroom_min: MilliCpu(50),
            cpu_calm: Duration::from_secs(15),
            memory_reserve_percent: 15,
            memory_reserve_min: Bytes(128 << 20),
            memory_calm: Duration::from_secs(20),
            step_pause: Duration::from_secs(5),
            silence: Duration::from_secs(5),
        }
    }
}

/// Pauses after failures and refusals, and how long answers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// After a permit request that failed, as long as nothing more is wanted.
    pub permit_failed: Duration,
    /// After the first failed request while growth is wanted; doubled with each further failure.
    pub growth_failed: Duration,
    /// Up to this.
    pub growth_failed_longest: Duration,
    /// After a permit that was less than wanted.
    pub permit_denied: Duration,
    /// The scheduler hears from every VM at least this often.
    pub permit_every: Duration,
    /// After a patch that failed.
    pub patch_failed: Duration,
    /// After a patch that lost a race against another writer.
    pub patch_raced: Duration,
    /// After a question to the guest that failed.
    pub guest_failed: Duration,
    /// How long a veto binds.
    pub veto_valid: Duration,
    /// Time between a veto and the next question.
    pub veto_pause: Duration,
    /// How long the guest's agreement to a shrink may be used.
    pub agreement_valid: Duration,
    /// What is gone is returned once nothing more went for this long.
    pub return_settle: Duration,
}

impl Retries {
    /// These, where the reference is not faster or slower by its nature: a wish to grow that failed waits like every
    /// other, and a veto alone keeps the guest from being asked again.
    #[must_use]
    pub fn like_reference(self) -> Self {
        let failed = self.permit_failed;
        Self {
            growth_failed: failed,
            growth_failed_longest: failed,
            veto_pause: Duration::ZERO,
            ..self
        }
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            permit_failed: Duration::from_secs(3),
            growth_failed: Duration::from_millis(250),
            growth_failed_longest: Duration::from_secs(2),
            permit_denied: Duration::from_secs(2),
            permit_every: Duration::from_secs(15),
            patch_failed: Duration::from_secs(5),
            patch_raced: Duration::from_millis(100),
            guest_failed: Duration::from_secs(3),
            veto_valid: Duration::from_secs(5),
            veto_pause: Duration::from_secs(1),
            agreement_valid: Duration::from_secs(2),
            return_settle: Duration::from_secs(2),
        }
    }
}
