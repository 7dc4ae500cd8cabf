//! Whether the guest can live with less.

use std::time::Duration;

use guest_units::{Bytes, Size};

use crate::memory::{MemoryView, REFAULTS_IN_USE};
use crate::tuning::Tuning;

/// A shrink must leave room for so long at the present rate.
const LOOK_AHEAD: Duration = Duration::from_secs(3);

/// The answer to a planned shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Fine at this moment.
    Fine,
    /// Not fine.
    Veto {
        /// The smallest size that would be.
        least: Size,
        /// Why.
        reason: Unsafe,
    },
}

/// Why a shrink is not safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsafe {
    /// Nothing was measured yet.
    NotMeasured,
    /// Too little would stay available.
    Reserve,
    /// Enough would stay, if use did not grow.
    Growing,
    /// Threads wait for memory already.
    Pressure,
    /// Pages are read again that were dropped for want of room.
    Cache,
}

impl Unsafe {
    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NotMeasured => "the guest has not measured its memory yet",
            Self::Reserve => "too little memory would stay available",
            Self::Growing => "the use of memory is growing",
            Self::Pressure => "threads wait for memory already",
            Self::Cache => "the page cache is too small already",
        }
    }
}

/// CPU may always shrink: it makes things slow, not wrong.
pub(crate) fn may_shrink(
    view: Option<&MemoryView>,
    tuning: &Tuning,
    from: Size,
    to: Size,
) -> Verdict {
    if to.memory >= from.memory {
        return Verdict::Fine;
    }
    let veto = |least: Bytes, reason| Verdict::Veto {
        least: Size::new(to.cpu, least.min(from.memory)),
        reason,
    };
    let Some(view) = view else { return veto(from.memory, Unsafe::NotMeasured) };
    if view.pressed {
        return veto(from.memory, Unsafe::Pressure);
    }
    if view.refaults_per_second >= REFAULTS_IN_USE {
        return veto(from.memory, Unsafe::Cache);
    }
    let growth = view.growth(LOOK_AHEAD);
    let least = least(view, tuning, from.memory, growth);
    if to.memory >= least {
        return Verdict::Fine;
    }
    let still = self::least(view, tuning, from.memory, Bytes::ZERO);
    veto(least, if to.memory >= still { Unsafe::Growing } else { Unsafe::Reserve })
}

/// The smallest total whose reserve stays available: what is taken away comes out of what is usable
/// now, and the reserve depends on the total that remains.
fn least(view: &MemoryView, tuning: &Tuning, from: Bytes, growth: Bytes) -> Bytes {
    let spare = view.usable.saturating_sub(view.dirty);
    let held = from.saturating_add(growth).saturating_sub(spare);
    let with_smallest = held.saturating_add(tuning.reserve_min);
    // total - total / 10 >= held
    let with_share = Bytes(held.times(10, 9).0.saturating_add(1));
    with_smallest.max(with_share)
}

#[cfg(test)]
mod tests {
    use guest_units::MilliCpu;
    use proptest::prelude::*;

    use super::*;

    fn mib(mib: u64) -> Bytes {
        Bytes::from_mib(mib)
    }

    fn size(cpu: u32, memory: u64) -> Size {
        Size::new(MilliCpu(cpu), mib(memory))
    }

    fn view(usable: u64, slope: u64) -> MemoryView {
        MemoryView { usable: mib(usable), slope_per_second: mib(slope), ..MemoryView::default() }
    }

    #[test]
    fn a_shrink_must_leave_the_reserve() {
        let tuning = Tuning::default();
        let ask = |view: &MemoryView, from, to| {
            may_shrink(Some(view), &tuning, size(1000, from), size(250, to))
        };
        assert_eq!(ask(&view(600, 0), 1024, 512), Verdict::Fine);
        let tight = ask(&view(560, 0), 1024, 512);
        let expected = size(250, 1024 - 560 + 64);
        assert_eq!(tight, Verdict::Veto { least: expected, reason: Unsafe::Reserve });
        assert_eq!(ask(&view(560, 0), 1024, 528), Verdict::Fine);
        // Large VMs keep a tenth.
        assert!(matches!(ask(&view(8192, 0), 16384, 8800), Verdict::Veto { .. }));
        assert_eq!(ask(&view(8192, 0), 16384, 9110), Verdict::Fine);
    }

    #[test]
    fn growth_pressure_and_a_missed_cache_veto() {
        let tuning = Tuning::default();
        let growing = may_shrink(Some(&view(600, 100)), &tuning, size(1000, 1024), size(250, 512));
        assert!(matches!(growing, Verdict::Veto { reason: Unsafe::Growing, .. }));
        let pressed = MemoryView { pressed: true, ..view(900, 0) };
        let verdict = may_shrink(Some(&pressed), &tuning, size(1000, 1024), size(250, 512));
        let least = size(250, 1024);
        assert_eq!(verdict, Verdict::Veto { least, reason: Unsafe::Pressure });
        let missed = MemoryView { refaults_per_second: 500, ..view(900, 0) };
        let verdict = may_shrink(Some(&missed), &tuning, size(1000, 1024), size(250, 512));
        assert_eq!(verdict, Verdict::Veto { least, reason: Unsafe::Cache });
        let unknown = may_shrink(None, &tuning, size(1000, 1024), size(250, 512));
        assert_eq!(unknown, Verdict::Veto { least, reason: Unsafe::NotMeasured });
    }

    #[test]
    fn cpu_is_never_vetoed() {
        let pressed = MemoryView { pressed: true, ..view(0, 900) };
        let verdict =
            may_shrink(Some(&pressed), &Tuning::default(), size(8000, 512), size(250, 512));
        assert_eq!(verdict, Verdict::Fine);
        assert_eq!(
            may_shrink(None, &Tuning::default(), size(8000, 512), size(250, 1024)),
            Verdict::Fine
        );
    }

    proptest! {
        #[test]
        fn what_is_fine_stays_fine_for_more(
            usable in 0u64..40_000, dirty in 0u64..2000, slope in 0u64..2000,
            from in 1u64..80_000, to in 0u64..80_000, more in 0u64..80_000,
        ) {
            let tuning = Tuning::default();
            let view = MemoryView { dirty: mib(dirty), ..view(usable, slope) };
            let ask = |to| may_shrink(Some(&view), &tuning, size(1000, from), size(1000, to));
            match ask(to) {
                Verdict::Fine => prop_assert_eq!(ask(to + more), Verdict::Fine),
                Verdict::Veto { least, .. } => {
                    prop_assert!(least.memory > mib(to) && least.memory <= mib(from));
                    let named = may_shrink(Some(&view), &tuning, size(1000, from), least);
                    prop_assert_eq!(named, Verdict::Fine, "what is named as fine is fine");
                }
            }
        }

        #[test]
        fn a_fine_shrink_leaves_the_reserve(
            usable in 0u64..40_000, from in 1u64..80_000, to in 0u64..80_000,
        ) {
            let tuning = Tuning::default();
            let view = view(usable, 0);
            let verdict = may_shrink(Some(&view), &tuning, size(1000, from), size(1000, to));
            if to < from && verdict == Verdict::Fine {
                let left = mib(usable).saturating_sub(mib(from - to));
                prop_assert!(left >= tuning.reserve(mib(to)) || mib(from).saturating_sub(mib(usable)).is_zero());
            }
        }
    }
}
