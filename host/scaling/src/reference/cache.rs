//! The cache's working set as it was measured: pages that were used within the last minute, the last two, and so on.

/// Windows that are kept.
const MOST: usize = 60;

/// Working sets over 1, 2, … minutes, in pages of 8 KiB. A claim of the guest: bounded in number and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheWindows {
    pages: [u32; MOST],
    count: u8,
}

impl CacheWindows {
    /// Windows that are kept at most; what is beyond them is dropped.
    pub const MOST: usize = MOST;

    /// The windows in their order, the shortest first. They may fall: they are measured one after the other.
    #[must_use]
    pub fn new(windows: impl IntoIterator<Item = u32>) -> Self {
        let mut kept = Self { pages: [0; MOST], count: 0 };
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

    /// Gives them to `with` as the goal wants them.
    pub(crate) fn as_floats<T>(&self, with: impl FnOnce(&[f64]) -> T) -> T {
        let mut floats = [0.0; MOST];
        let pages = self.pages();
        for (float, pages) in floats.iter_mut().zip(pages) {
            *float = f64::from(*pages);
        }
        with(floats.get(..pages.len()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_an_hour_is_kept() {
        let windows = CacheWindows::new(0..100);
        assert_eq!((windows.pages().len(), windows.pages()[59]), (60, 59));
        assert_eq!(CacheWindows::new([]).pages(), [0; 0]);
        windows.as_floats(|floats| assert!(floats.len() == 60 && (floats[59] - 59.0).abs() < 1e-9));
    }
}
