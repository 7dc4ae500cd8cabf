//! An amount of memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::quantity::{QuantityError, parse_scaled};
use crate::wire::{self, FromQuantity};

/// An amount of memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many MiB; the largest amount when that does not fit.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// So many GiB; the largest amount when that does not fit.
    #[must_use]
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// So many KiB, the unit of `/proc/meminfo`; the largest amount when that does not fit.
    #[must_use]
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib.saturating_mul(1 << 10))
    }

    /// Whole MiB, rounded down.
    #[must_use]
    pub const fn whole_mib(self) -> u64 {
        self.0 >> 20
    }

    /// The plain number.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u64 {
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

    /// The product, `None` when it does not fit.
    #[must_use]
    pub const fn checked_mul(self, factor: u64) -> Option<Self> {
        match self.0.checked_mul(factor) {
            Some(product) => Some(Self(product)),
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
    pub const fn saturating_mul(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }

    /// This times `numerator / denominator`, rounded down, at most the largest amount. A denominator
    /// of zero counts as one.
    #[inline]
    #[must_use]
    pub fn times(self, numerator: u64, denominator: u64) -> Self {
        let product = u128::from(self.0) * u128::from(numerator) / u128::from(denominator.max(1));
        Self(u64::try_from(product).unwrap_or(u64::MAX))
    }

    /// The next multiple of `step` at or above; unchanged for a step of zero.
    #[must_use]
    pub const fn round_up(self, step: Self) -> Self {
        if step.0 == 0 {
            return self;
        }
        Self(self.0.div_ceil(step.0).saturating_mul(step.0))
    }

    /// The next multiple of `step` at or below; unchanged for a step of zero.
    #[must_use]
    pub const fn round_down(self, step: Self) -> Self {
        if step.0 == 0 {
            return self;
        }
        Self(self.0 / step.0 * step.0)
    }
}

impl Bytes {
    /// For people: exact where that is short, else in Mi or Gi with one decimal.
    #[must_use]
    pub fn short(self) -> String {
        let exact = self.to_string();
        if exact.len() <= 6 {
            return exact;
        }
        let (unit, suffix) = if self.0 >= 1 << 30 { (1 << 30, "Gi") } else { (1 << 20, "Mi") };
        let tenths = u128::from(self.0) * 10 / unit;
        format!("{}.{}{suffix}", tenths / 10, tenths % 10)
    }
}

/// The largest binary suffix that leaves a whole number: `1Gi`, `1500Mi`, `1025`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut value = self.0;
        let mut suffix = 0;
        while value != 0 && value.is_multiple_of(1024) && suffix + 1 < SUFFIXES.len() {
            value /= 1024;
            suffix += 1;
        }
        f.pad(&format!("{value}{}", SUFFIXES[suffix]))
    }
}

impl FromStr for Bytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_scaled(text, 0).map(Self)
    }
}

impl FromQuantity for Bytes {
    const EXPECTING: &'static str = "a memory quantity such as \"1Gi\" or a number of bytes";
    fn from_quantity(text: &str) -> Result<Self, QuantityError> {
        text.parse()
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 < 1024 { serializer.serialize_u64(self.0) } else { serializer.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        wire::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_is_the_references() {
        for (bytes, json) in [
            (Bytes(0), "0"),
            (Bytes(1023), "1023"),
            (Bytes(1024), "\"1Ki\""),
            (Bytes(1025), "\"1025\""),
            (Bytes::from_gib(1), "\"1Gi\""),
            (Bytes::from_mib(1500), "\"1500Mi\""),
        ] {
            assert_eq!(serde_json::to_string(&bytes).unwrap(), json);
            assert_eq!(serde_json::from_str::<Bytes>(json).unwrap(), bytes);
        }
        assert_eq!(serde_json::from_str::<Bytes>("1073741824").unwrap(), Bytes::from_gib(1));
        assert_eq!(serde_json::from_str::<Bytes>("1.5e9").unwrap(), Bytes(1_500_000_000));
        assert!(serde_json::from_str::<Bytes>("-1").is_err());
        assert!(serde_json::from_str::<Bytes>("true").is_err());
    }

    #[test]
    fn rounding_keeps_multiples() {
        let step = Bytes::from_mib(8);
        assert_eq!(Bytes::from_mib(9).round_up(step), Bytes::from_mib(16));
        assert_eq!(Bytes::from_mib(9).round_down(step), Bytes::from_mib(8));
        assert_eq!(Bytes::from_mib(16).round_up(step), Bytes::from_mib(16));
        assert_eq!(Bytes(5).round_up(Bytes::ZERO), Bytes(5));
        assert_eq!(Bytes(u64::MAX).times(3, 2), Bytes(u64::MAX));
        assert_eq!(Bytes(100).times(3, 4), Bytes(75));
    }

    proptest! {
        #[test]
        fn text_and_json_come_back(value: u64) {
            let bytes = Bytes(value);
            prop_assert_eq!(bytes.to_string().parse(), Ok(bytes));
            let json = serde_json::to_string(&bytes).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), bytes);
        }

        #[test]
        fn sums_and_differences_agree(a: u64, b: u64) {
            let (a, b) = (Bytes(a), Bytes(b));
            prop_assert_eq!(a.checked_add(b).unwrap_or(Bytes(u64::MAX)), a.saturating_add(b));
            prop_assert_eq!(a.checked_sub(b).unwrap_or(Bytes::ZERO), a.saturating_sub(b));
        }
    }

    #[test]
    fn what_people_read_is_short() {
        for (bytes, text) in [
            (0, "0"),
            (1 << 30, "1Gi"),
            (1536 << 20, "1536Mi"),
            ((1 << 30) + 12345, "1.0Gi"),
            (123_456_789, "117.7Mi"),
            (u64::MAX, "17179869183.9Gi"),
        ] {
            assert_eq!(Bytes(bytes).short(), text);
        }
    }
}
