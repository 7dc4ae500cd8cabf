//! The plain levels that the host's policy `reference` decides on, and the working set of Postgres' file cache.

use std::fmt;

use guest_units::Bytes;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Levels as the kernel names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Load average over a minute, in thousandths.
    pub load1_milli: u32,
    /// Load average over five minutes, in thousandths.
    pub load5_milli: u32,
    /// `MemTotal`.
    pub memory_total: Bytes,
    /// `MemAvailable`, the kernel's own estimate.
    pub memory_available: Bytes,
    /// `Cached`: page cache.
    pub memory_cached: Bytes,
}

/// Pages of 8 KiB that the cache used within the last minute, the last two, and so on: at most 60, more are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheWindows {
    pages: [u32; CacheWindows::MOST],
    count: u8,
}

impl CacheWindows {
    /// An hour of minutes.
    pub const MOST: usize = 60;

    /// The windows in their order, the shortest first.
    #[must_use]
    pub fn new(windows: impl IntoIterator<Item = u32>) -> Self {
        let mut kept = Self { pages: [0; Self::MOST], count: 0 };
        for (slot, pages) in kept.pages.iter_mut().zip(windows) {
            *slot = pages;
            kept.count += 1;
        }
        kept
    }

    /// The windows that there are.
    #[must_use]
    pub fn pages(&self) -> &[u32] {
        self.pages.get(..self.count.into()).unwrap_or_default()
    }
}

impl Serialize for CacheWindows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.pages())
    }
}

impl<'de> Deserialize<'de> for CacheWindows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Windows)
    }
}

/// Keeps what there is room for, without a list in between.
struct Windows;

impl<'de> Visitor<'de> for Windows {
    type Value = CacheWindows;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of pages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<CacheWindows, A::Error> {
        let mut kept = CacheWindows::new([]);
        for slot in &mut kept.pages {
            let Some(pages) = list.next_element()? else { return Ok(kept) };
            *slot = pages;
            kept.count += 1;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_windows_than_an_hour_has_are_dropped() {
        let read = |text: &str| serde_json::from_str::<CacheWindows>(text);
        let many: Vec<String> = (0..100).map(|pages: u32| pages.to_string()).collect();
        let windows = read(&format!("[{}]", many.join(","))).unwrap();
        assert_eq!((windows.pages().len(), windows.pages()[59]), (60, 59));
        assert_eq!(read("[3,1]").unwrap(), CacheWindows::new([3, 1]));
        assert_eq!(read("[]").unwrap().pages(), [0; 0]);
        for wrong in ["[-1]", "[1.5]", "[4294967296]", "[null]", "{}"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
