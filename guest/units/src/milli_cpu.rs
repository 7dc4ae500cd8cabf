//! An amount of CPU.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::quantity::{QuantityError, parse_scaled};
use crate::wire::{self, FromQuantity};

/// An amount of CPU in thousandths of a virtual CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MilliCpu(pub u32);

impl MilliCpu {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One whole CPU.
    pub const ONE: Self = Self(1000);

    /// So many whole CPUs; the largest amount when that does not fit.
    #[must_use]
    pub const fn from_cpus(cpus: u32) -> Self {
        Self(cpus.saturating_mul(1000))
    }

    /// The number of whole CPUs that it needs: what QEMU and the guest see.
    #[inline]
    #[must_use]
    pub const fn whole_up(self) -> u32 {
        self.0.div_ceil(1000)
    }

    /// The plain number of thousandths.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether it is nothing.
    #[inline]
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, `None` below zero.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The sum, at most the largest amount.
    #[inline]
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, at least zero.
    #[inline]
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The product, at most the largest amount.
    #[must_use]
    pub const fn saturating_mul(self, factor: u32) -> Self {
        Self(self.0.saturating_mul(factor))
    }

    /// This times `numerator / denominator`, rounded up, at most the largest amount. A denominator of
    /// zero counts as one.
    #[must_use]
    pub fn times_up(self, numerator: u32, denominator: u32) -> Self {
        let product = u64::from(self.0) * u64::from(numerator);
        Self(u32::try_from(product.div_ceil(u64::from(denominator.max(1)))).unwrap_or(u32::MAX))
    }

    /// The next multiple of `step` at or above; unchanged for a step of zero.
    #[must_use]
    pub const fn round_up(self, step: Self) -> Self {
        if step.0 == 0 {
            return self;
        }
        Self(self.0.div_ceil(step.0).saturating_mul(step.0))
    }
}

/// `2` for whole CPUs, `250m` otherwise.
impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            f.pad(&(self.0 / 1000).to_string())
        } else {
            f.pad(&format!("{}m", self.0))
        }
    }
}

impl FromStr for MilliCpu {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let milli = parse_scaled(text, 3)?;
        u32::try_from(milli).map(Self).map_err(|_| QuantityError::Range)
    }
}

impl FromQuantity for MilliCpu {
    const EXPECTING: &'static str = "a CPU quantity such as \"250m\" or a number of CPUs";
    fn from_quantity(text: &str) -> Result<Self, QuantityError> {
        text.parse()
    }
}

impl Serialize for MilliCpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u32(self.0 / 1000)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl<'de> Deserialize<'de> for MilliCpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        wire::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_and_strings_are_read() {
        for (json, milli) in [
            ("1", 1000),
            ("0.25", 250),
            ("\"250m\"", 250),
            ("\"0.25\"", 250),
            ("\"1.5\"", 1500),
            ("0.0001", 1),
            ("\"2k\"", 2_000_000),
            ("0", 0),
            ("0.1", 100),
            ("0.3", 300),
        ] {
            assert_eq!(serde_json::from_str::<MilliCpu>(json).unwrap(), MilliCpu(milli), "{json}");
        }
        for json in ["-1", "\"-250m\"", "-0.5", "\"5M\"", "null", "\"one\"", "4294968", "{}"] {
            assert!(serde_json::from_str::<MilliCpu>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn whole_cpus_are_written_bare() {
        assert_eq!(serde_json::to_string(&MilliCpu(2000)).unwrap(), "2");
        assert_eq!(serde_json::to_string(&MilliCpu(1500)).unwrap(), "\"1500m\"");
        assert_eq!(MilliCpu(250).to_string(), "250m");
        assert_eq!(MilliCpu(0).to_string(), "0");
    }

    #[test]
    fn partial_cpus_need_a_whole_one() {
        for (milli, whole) in [(0, 0), (1, 1), (1000, 1), (1001, 2), (u32::MAX, 4_294_968)] {
            assert_eq!(MilliCpu(milli).whole_up(), whole);
        }
        assert_eq!(MilliCpu(100).times_up(3, 2), MilliCpu(150));
        assert_eq!(MilliCpu(u32::MAX).times_up(2, 1), MilliCpu(u32::MAX));
        assert_eq!(MilliCpu(260).round_up(MilliCpu(250)), MilliCpu(500));
    }

    proptest! {
        #[test]
        fn text_and_json_come_back(value: u32) {
            let cpu = MilliCpu(value);
            prop_assert_eq!(cpu.to_string().parse(), Ok(cpu));
            let json = serde_json::to_string(&cpu).unwrap();
            prop_assert_eq!(serde_json::from_str::<MilliCpu>(&json).unwrap(), cpu);
        }

        #[test]
        fn a_json_fraction_is_not_distorted(value in 0u32..10_000_000) {
            let json = format!("{}.{:03}", value / 1000, value % 1000);
            prop_assert_eq!(serde_json::from_str::<MilliCpu>(&json).unwrap(), MilliCpu(value));
        }
    }
}
