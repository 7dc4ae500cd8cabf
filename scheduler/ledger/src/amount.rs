//! CPU and memory of a node or a pod: sums of many sizes, so wider than a VM's `Size`.

use std::fmt;
use std::ops::Add;

use guest_units::{Bytes, MilliCpu, Size};
use serde::{Deserialize, Serialize};

/// CPU and memory that a pod requests or a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Amount {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Memory.
    pub memory_bytes: u64,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self { cpu_millis: 0, memory_bytes: 0 };

    /// Larger of the two, per resource.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
        }
    }

    /// Smaller of the two, per resource.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.min(other.cpu_millis),
            memory_bytes: self.memory_bytes.min(other.memory_bytes),
        }
    }

    /// What is left, per resource; never below nothing.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }

    /// Whether both resources fit.
    #[must_use]
    pub fn fits_in(self, room: Self) -> bool {
        self.cpu_millis <= room.cpu_millis && self.memory_bytes <= room.memory_bytes
    }
}

impl Add for Amount {
    type Output = Self;

    /// Absurd input saturates: a node that seems full refuses, one that wraps around would not.
    fn add(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }
}

impl std::iter::Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

/// A sum from which parts can be taken away again: so wide that it never saturates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    cpu_millis: u128,
    memory_bytes: u128,
}

impl Sum {
    pub(crate) fn add(&mut self, part: Amount) {
        self.cpu_millis += u128::from(part.cpu_millis);
        self.memory_bytes += u128::from(part.memory_bytes);
    }

    /// Takes away what was added.
    pub(crate) fn take(&mut self, part: Amount) {
        self.cpu_millis = self.cpu_millis.saturating_sub(part.cpu_millis.into());
        self.memory_bytes = self.memory_bytes.saturating_sub(part.memory_bytes.into());
    }

    /// As [`Amount`]s add up: saturated.
    pub(crate) fn amount(self) -> Amount {
        Amount {
            cpu_millis: u64::try_from(self.cpu_millis).unwrap_or(u64::MAX),
            memory_bytes: u64::try_from(self.memory_bytes).unwrap_or(u64::MAX),
        }
    }
}

impl From<Size> for Amount {
    fn from(size: Size) -> Self {
        Self { cpu_millis: u64::from(size.cpu.0), memory_bytes: size.memory.0 }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU, {} memory", cpu_text(self.cpu_millis), Bytes(self.memory_bytes))
    }
}

/// CPU as users write it.
pub(crate) fn cpu_text(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// What a size costs on a node: divided by the overcommit, rounded up, plus the machine around the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Divisor of the CPU, in thousandths; never 0.
    pub cpu_overcommit_thousandths: u32,
    /// Divisor of the memory, in thousandths; never 0.
    pub memory_overcommit_thousandths: u32,
    /// What QEMU and the runner take beside the guest.
    pub overhead: Amount,
    /// Requests that the user demands at least.
    pub floor: Amount,
}

/// The overhead of a VM's pod that does not say its own.
pub const DEFAULT_OVERHEAD: Amount = Amount { cpu_millis: 100, memory_bytes: 256 << 20 };

impl Default for Price {
    fn default() -> Self {
        Self {
            cpu_overcommit_thousandths: 1000,
            memory_overcommit_thousandths: 1000,
            overhead: DEFAULT_OVERHEAD,
            floor: Amount::ZERO,
        }
    }
}

impl Price {
    /// Requests that back a size.
    #[must_use]
    pub fn cost(&self, size: Size) -> Amount {
        let divided = Amount {
            cpu_millis: divide_up(u64::from(size.cpu.0), self.cpu_overcommit_thousandths),
            memory_bytes: divide_up(size.memory.0, self.memory_overcommit_thousandths),
        };
        (divided + self.overhead).max(self.floor)
    }

    /// The largest size that requests back: `cost(affordable(requests))` fits in `requests` where there is room for
    /// the overhead at all.
    #[must_use]
    pub fn affordable(&self, requests: Amount) -> Size {
        let left = requests.saturating_sub(self.overhead);
        let cpu = multiply_down(left.cpu_millis, self.cpu_overcommit_thousandths);
        Size {
            cpu: MilliCpu(u32::try_from(cpu).unwrap_or(u32::MAX)),
            memory: Bytes(multiply_down(left.memory_bytes, self.memory_overcommit_thousandths)),
        }
    }
}

fn divide_up(value: u64, thousandths: u32) -> u64 {
    let wide = (u128::from(value) * 1000).div_ceil(u128::from(thousandths.max(1)));
    u64::try_from(wide).unwrap_or(u64::MAX)
}

fn multiply_down(value: u64, thousandths: u32) -> u64 {
    let wide = u128::from(value) * u128::from(thousandths) / 1000;
    u64::try_from(wide).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn cost_divides_by_overcommit_and_adds_overhead() {
        let price = Price { cpu_overcommit_thousandths: 3000, ..Price::default() };
        let cost = price.cost(Size { cpu: MilliCpu(1000), memory: Bytes(GIB) });
        assert_eq!(cost, Amount { cpu_millis: 334 + 100, memory_bytes: GIB + (256 << 20) });
        let floor = Amount { cpu_millis: 2000, memory_bytes: 0 };
        let price = Price { floor, ..Price::default() };
        assert_eq!(price.cost(Size { cpu: MilliCpu(1), memory: Bytes(0) }).cpu_millis, 2000);
    }

    #[test]
    fn absurd_sizes_saturate() {
        let price = Price { memory_overcommit_thousandths: 1, ..Price::default() };
        let cost = price.cost(Size { cpu: MilliCpu(1), memory: Bytes(u64::MAX) });
        assert_eq!(cost.memory_bytes, u64::MAX);
    }

    proptest! {
        #[test]
        fn affordable_is_the_inverse_of_cost(
            cpu in 100_u64..1_000_000, memory in (256_u64 << 20)..(1 << 45), oc in 1_u32..20_000, om in 1_u32..20_000,
        ) {
            let price = Price { cpu_overcommit_thousandths: oc, memory_overcommit_thousandths: om, ..Price::default() };
            let requests = Amount { cpu_millis: cpu, memory_bytes: memory };
            let size = price.affordable(requests);
            prop_assert!(price.cost(size).fits_in(requests));
            let more = Size { cpu: MilliCpu(size.cpu.0 + 1), memory: Bytes(size.memory.0 + 1) };
            prop_assert!(price.cost(more).cpu_millis > cpu);
            prop_assert!(price.cost(more).memory_bytes > memory);
        }
    }
}
