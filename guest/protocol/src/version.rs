//! Which version of the protocol two ends speak.

use serde::{Deserialize, Serialize};

/// The version that this code was written for.
pub const CURRENT: u32 = 1;

/// The current version and the one before it, where there is one.
pub const SUPPORTED: Versions =
    Versions { min: if CURRENT > 1 { CURRENT - 1 } else { 1 }, max: CURRENT };

/// A range of versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

/// No version is common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no common version: {}-{} here, {}-{} there", ours.min, ours.max, theirs.min, theirs.max)]
pub struct VersionError {
    /// What we speak.
    pub ours: Versions,
    /// What the peer speaks.
    pub theirs: Versions,
}

/// The newest version that both speak.
///
/// # Errors
/// When there is none.
pub fn negotiate(ours: Versions, theirs: Versions) -> Result<u32, VersionError> {
    let (min, max) = (ours.min.max(theirs.min), ours.max.min(theirs.max));
    if min <= max { Ok(max) } else { Err(VersionError { ours, theirs }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_common_version_is_taken() {
        let range = |min, max| Versions { min, max };
        assert_eq!(negotiate(range(1, 1), range(1, 1)), Ok(1));
        assert_eq!(negotiate(range(2, 3), range(1, 2)), Ok(2));
        assert_eq!(negotiate(range(1, 9), range(4, 5)), Ok(5));
        assert!(negotiate(range(1, 1), range(2, 3)).is_err());
        assert!(negotiate(range(1, 1), range(3, 0)).is_err());
    }

    proptest! {
        #[test]
        fn both_ends_come_to_the_same(a: u32, b: u32, c: u32, d: u32) {
            let (x, y) = (Versions { min: a, max: b }, Versions { min: c, max: d });
            let (here, there) = (negotiate(x, y), negotiate(y, x));
            prop_assert_eq!(here.ok(), there.ok());
            if let Ok(version) = here {
                prop_assert!((a..=b).contains(&version) && (c..=d).contains(&version));
            }
        }
    }
}
