//! Random numbers that are the same on every machine.

use rand::SeedableRng as _;

/// The generator of everything random here: small, and its numbers never change from one version to the next.
pub type Random = rand_pcg::Pcg64Mcg;

/// A generator for one part of a simulation: parts never share one, so that a change in one part leaves the others' numbers.
#[must_use]
pub fn random(seed: u64, part: u64) -> Random {
    // Of splitmix64: neighbouring seeds and parts must not give related streams.
    let mix = |value: u64| {
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    Random::seed_from_u64(mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ part))
}
