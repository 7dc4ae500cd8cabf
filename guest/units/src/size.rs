//! CPU and memory together.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Bytes, MilliCpu};

/// CPU and memory of a VM: always totals, never differences. In JSON `{"vCPUs": "250m", "mem": "1Gi"}`.
///
/// Sizes have no order: one may have more CPU and less memory than another. Compare with
/// [`Size::fits_in`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Size {
    /// CPU.
    #[serde(rename = "vCPUs")]
    pub cpu: MilliCpu,
    /// Memory.
    #[serde(rename = "mem")]
    pub memory: Bytes,
}

impl Size {
    /// Nothing.
    pub const ZERO: Self = Self { cpu: MilliCpu::ZERO, memory: Bytes::ZERO };

    /// Both together.
    #[must_use]
    pub const fn new(cpu: MilliCpu, memory: Bytes) -> Self {
        Self { cpu, memory }
    }

    /// The smaller of each.
    #[inline]
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { cpu: self.cpu.min(other.cpu), memory: self.memory.min(other.memory) }
    }

    /// The larger of each.
    #[inline]
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { cpu: self.cpu.max(other.cpu), memory: self.memory.max(other.memory) }
    }

    /// Each brought between the bounds; where they cross, the upper one wins.
    #[must_use]
    pub fn clamp(self, min: Self, max: Self) -> Self {
        self.max(min).min(max)
    }

    /// Whether neither CPU nor memory is more than the other's.
    #[inline]
    #[must_use]
    pub fn fits_in(self, other: Self) -> bool {
        self.cpu <= other.cpu && self.memory <= other.memory
    }

    /// Each difference, at least zero.
    #[inline]
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(other.cpu),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    /// Each sum, at most the largest amount.
    #[inline]
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_add(other.cpu),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// Each sum, `None` when one does not fit.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            cpu: self.cpu.checked_add(other.cpu)?,
            memory: self.memory.checked_add(other.memory)?,
        })
    }
}

/// `250m/1Gi`.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.cpu, self.memory))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes() -> impl Strategy<Value = Size> {
        (any::<u32>(), any::<u64>()).prop_map(|(cpu, mem)| Size::new(MilliCpu(cpu), Bytes(mem)))
    }

    #[test]
    fn json_is_the_resources_object() {
        let size = Size::new(MilliCpu(250), Bytes::from_gib(1));
        let json = r#"{"vCPUs":"250m","mem":"1Gi"}"#;
        assert_eq!(serde_json::to_string(&size).unwrap(), json);
        assert_eq!(serde_json::from_str::<Size>(json).unwrap(), size);
        assert_eq!(size.to_string(), "250m/1Gi");
        assert!(serde_json::from_str::<Size>(r#"{"vCPUs":1}"#).is_err());
    }

    proptest! {
        #[test]
        fn min_fits_in_both_and_both_fit_in_max(a in sizes(), b in sizes()) {
            prop_assert!(a.min(b).fits_in(a) && a.min(b).fits_in(b));
            prop_assert!(a.fits_in(a.max(b)) && b.fits_in(a.max(b)));
        }

        #[test]
        fn a_difference_added_again_covers(a in sizes(), b in sizes()) {
            prop_assert!(a.fits_in(a.saturating_sub(b).saturating_add(b)));
            if let Some(sum) = a.checked_add(b) {
                prop_assert_eq!(sum.saturating_sub(b), a);
            }
        }

        #[test]
        fn clamped_is_within_bounds(a in sizes(), b in sizes(), c in sizes()) {
            let (low, high) = (b.min(c), b.max(c));
            let clamped = a.clamp(low, high);
            prop_assert!(low.fits_in(clamped) && clamped.fits_in(high));
        }
    }
}
