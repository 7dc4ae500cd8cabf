//! Counts of values in buckets that grow with the value: a small one for each VM, a fine one for the fleet.
//!
//! Each octave has the same number of buckets of equal width, so that a bucket is never wider than a fixed part of its
//! values. A percentile is the upper end of its bucket.

/// The bucket of a value, with `1 << bits` buckets in each octave; values below that have a bucket each.
fn bucket(value: u64, bits: u32) -> usize {
    let octave = value.checked_ilog2().unwrap_or(0).saturating_sub(bits);
    let bucket = (u64::from(octave) << bits) + (value >> octave);
    usize::try_from(bucket).unwrap_or(usize::MAX)
}

/// The largest value of a bucket.
fn upper(bucket: usize, bits: u32) -> u64 {
    let bucket = u128::try_from(bucket).unwrap_or(u128::MAX).min(1 << 16);
    let octave = (bucket >> bits).saturating_sub(1);
    let value = ((bucket - (octave << bits) + 1) << octave.min(64)) - 1;
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// The value that `share` of the counted ones do not exceed; `None` for no counts.
fn percentile(counts: impl Iterator<Item = u64> + Clone, bits: u32, share: f64) -> Option<u64> {
    let total: u64 = counts.clone().sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count is a count"
    )]
    let rank = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    let found = counts.enumerate().find(|(_, count)| {
        seen += count;
        seen >= rank
    });
    found.map(|(bucket, _)| upper(bucket, bits))
}

const WAIT_BITS: u32 = 1;
const WAIT_BUCKETS: usize = 40;
/// Longer waits than this, in milliseconds, are all alike: some 13 minutes.
pub(super) const LONGEST_WAIT: u64 = (1 << 20) * 3 / 4 - 1;

/// Waits of one VM: two buckets in each octave of milliseconds, from 1 ms to 12 min and beyond. A bucket stops counting at
/// 65,535.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waits([u16; WAIT_BUCKETS]);

impl Default for Waits {
    fn default() -> Self {
        Self([0; WAIT_BUCKETS])
    }
}

impl Waits {
    /// Counts a wait; parts of a millisecond count as one.
    pub(super) fn add(&mut self, nanos: u64) {
        let bucket = bucket(nanos.div_ceil(1_000_000), WAIT_BITS).min(WAIT_BUCKETS - 1);
        self.0[bucket] = self.0[bucket].saturating_add(1);
    }

    /// In milliseconds.
    pub(super) fn percentile(&self, share: f64) -> Option<u64> {
        percentile(self.0.iter().map(|count| u64::from(*count)), WAIT_BITS, share)
    }
}

/// Waits of all VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FleetWaits([u64; WAIT_BUCKETS]);

impl Default for FleetWaits {
    fn default() -> Self {
        Self([0; WAIT_BUCKETS])
    }
}

impl FleetWaits {
    pub(super) fn add(&mut self, waits: &Waits) {
        for (sum, count) in self.0.iter_mut().zip(waits.0) {
            *sum += u64::from(count);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    /// In milliseconds.
    pub(super) fn percentile(&self, share: f64) -> Option<u64> {
        percentile(self.0.iter().copied(), WAIT_BITS, share)
    }
}

const SPREAD_BITS: u32 = 7;
/// Numbers are counted in millionths.
const SCALE: f64 = 1e6;

/// One number of each VM of a fleet, to less than 1 %.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Spread(Vec<u64>);

impl Spread {
    /// Counts a number that is not below zero.
    pub(super) fn add(&mut self, value: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and is not below 0"
        )]
        let bucket = bucket((value * SCALE).round() as u64, SPREAD_BITS);
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            *sum += count;
        }
    }

    pub(super) fn percentile(&self, share: f64) -> Option<f64> {
        percentile(self.0.iter().copied(), SPREAD_BITS, share).map(|value| value as f64 / SCALE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_of_waits() {
        let ends: Vec<u64> = (0..10).map(|bucket| upper(bucket, WAIT_BITS)).collect();
        assert_eq!(ends, [0, 1, 2, 3, 5, 7, 11, 15, 23, 31]);
        assert_eq!(upper(WAIT_BUCKETS - 2, WAIT_BITS), LONGEST_WAIT);
        let mut waits = Waits::default();
        assert_eq!(waits.percentile(0.5), None);
        for millis in (1..=98).map(|_| 45).chain([3000, u64::MAX / 1_000_000]) {
            waits.add(millis * 1_000_000);
        }
        assert_eq!(waits.percentile(0.5), Some(47));
        assert_eq!(waits.percentile(0.99), Some(3071));
        assert_eq!(waits.percentile(1.0), Some(1_048_575));
    }

    proptest! {
        #[test]
        fn a_value_is_in_its_bucket(value: u64, bits in 0u32..10) {
            let found = bucket(value, bits);
            prop_assert!(value <= upper(found, bits));
            prop_assert!(found == 0 || value > upper(found - 1, bits));
        }
    }
}
