//! The goal of one resource: pure arithmetic on millicores or bytes.
//!
//! ```text
//!   peak > base            grow to the peak, at once
//!   peak = base            stay
//!   peak < base            stay until the calm spell and the pause between steps are over, then half of the
//!                          way down (at least one grid step), never below the peak
//!   then the bounds, then: without a live guest no shrink; a veto binds even above the maximum
//! ```

/// The rule that decided about one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// The demand fits the size.
    Stay,
    /// Demand and reserve are above the size.
    Grow,
    /// The calm spell is over: one step down.
    StepDown,
    /// Lower demand, but not for long enough.
    WaitCalm,
    /// A step down was made just now.
    WaitStep,
    /// The guest has not been heard: hold.
    Silent,
    /// The lower bound.
    Minimum,
    /// The upper bound.
    Maximum,
    /// The guest refuses to go lower.
    Veto,
}

impl Rule {
    /// Fixed text for records, logs and metric labels.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Stay => "stay",
            Self::Grow => "grow",
            Self::StepDown => "step-down",
            Self::WaitCalm => "wait-calm",
            Self::WaitStep => "wait-step",
            Self::Silent => "silent",
            Self::Minimum => "minimum",
            Self::Maximum => "maximum",
            Self::Veto => "veto",
        }
    }
}

/// Everything the goal of one resource depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis {
    /// Step of the sizes.
    pub(crate) grid: u64,
    /// The size that counts as the present one.
    pub(crate) base: u64,
    /// Largest need within the calm spell; `None`: nothing heard.
    pub(crate) peak: Option<u64>,
    /// A veto that still binds.
    pub(crate) veto: Option<u64>,
    /// Lower bound.
    pub(crate) min: u64,
    /// Upper bound.
    pub(crate) max: u64,
    /// The guest is connected and heard.
    pub(crate) live: bool,
    /// The guest was heard for the whole calm spell.
    pub(crate) calm: bool,
    /// The pause since the last step down is over, and that step is complete.
    pub(crate) settled: bool,
}

/// The goal of one resource, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) goal: u64,
    pub(crate) rule: Rule,
}

/// Demand plus reserve, on the grid.
pub(crate) fn need(demand: u64, percent: u32, reserve_min: u64, grid: u64) -> u64 {
    let share = u128::from(demand) * u128::from(percent) / 100;
    let reserve = u64::try_from(share).unwrap_or(u64::MAX).max(reserve_min);
    round_up(demand.saturating_add(reserve), grid)
}

/// The next multiple of `grid`, saturating.
pub(crate) fn round_up(value: u64, grid: u64) -> u64 {
    let grid = grid.max(1);
    value.checked_next_multiple_of(grid).unwrap_or(u64::MAX - u64::MAX % grid)
}

fn round_down(value: u64, grid: u64) -> u64 {
    value - value % grid.max(1)
}

/// The goal of one resource.
pub(crate) fn judge(axis: Axis) -> Verdict {
    let wish = bounded(wish(axis), axis);
    if wish.goal >= axis.base {
        return wish;
    }
    if !axis.live {
        return Verdict { goal: axis.base, rule: Rule::Silent };
    }
    match axis.veto {
        Some(least) if least > wish.goal => {
            Verdict { goal: round_up(least, axis.grid).min(axis.base), rule: Rule::Veto }
        }
        _ => wish,
    }
}

fn wish(axis: Axis) -> Verdict {
    let stay = |rule| Verdict { goal: axis.base, rule };
    let Some(peak) = axis.peak else { return stay(Rule::Silent) };
    if peak > axis.base {
        return Verdict { goal: peak, rule: Rule::Grow };
    }
    if peak == axis.base {
        return stay(Rule::Stay);
    }
    if !axis.live {
        return stay(Rule::Silent);
    }
    if !axis.calm {
        return stay(Rule::WaitCalm);
    }
    if !axis.settled {
        return stay(Rule::WaitStep);
    }
    let half = round_up((axis.base - peak).div_ceil(2), axis.grid).max(axis.grid);
    let goal = round_down(axis.base.saturating_sub(half), axis.grid).max(peak);
    Verdict { goal, rule: Rule::StepDown }
}

fn bounded(wish: Verdict, axis: Axis) -> Verdict {
    if wish.goal > axis.max {
        Verdict { goal: axis.max, rule: Rule::Maximum }
    } else if wish.goal < axis.min {
        // At the minimum already: nothing was decided.
        let rule = if axis.base == axis.min { Rule::Stay } else { Rule::Minimum };
        Verdict { goal: axis.min, rule }
    } else {
        wish
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn axis(base: u64, peak: u64) -> Axis {
        Axis {
            grid: 250,
            base,
            peak: Some(peak),
            veto: None,
            min: 250,
            max: 4000,
            live: true,
            calm: true,
            settled: true,
        }
    }

    #[test]
    fn need_is_demand_and_reserve_on_the_grid() {
        let table = [
            (0, 250),
            (199, 250),
            (200, 250),
            (201, 500),
            (1000, 1250),
            (1100, 1500),
            (u64::MAX, u64::MAX - u64::MAX % 250),
        ];
        for (demand, expected) in table {
            assert_eq!(need(demand, 20, 50, 250), expected, "demand {demand}");
        }
    }

    #[test]
    fn goals_of_typical_situations() {
        let table = [
            ("grows at once", axis(250, 2000), 2000, Rule::Grow),
            ("never above the maximum", axis(250, 9000), 4000, Rule::Maximum),
            ("stays", axis(1000, 1000), 1000, Rule::Stay),
            ("half of the way down", axis(4000, 500), 2250, Rule::StepDown),
            ("at least one grid step", axis(750, 500), 500, Rule::StepDown),
            ("not below the minimum", axis(250, 0), 250, Rule::Stay),
            ("waits for calm", Axis { calm: false, ..axis(2000, 250) }, 2000, Rule::WaitCalm),
            (
                "waits for the step",
                Axis { settled: false, ..axis(2000, 250) },
                2000,
                Rule::WaitStep,
            ),
            ("silence holds", Axis { live: false, ..axis(2000, 250) }, 2000, Rule::Silent),
            ("never heard holds", Axis { peak: None, ..axis(2000, 0) }, 2000, Rule::Silent),
            (
                "silence above maximum holds",
                Axis { live: false, ..axis(6000, 0) },
                6000,
                Rule::Silent,
            ),
            (
                "lowered maximum forces",
                Axis { calm: false, ..axis(6000, 5000) },
                4000,
                Rule::Maximum,
            ),
            ("veto binds", Axis { veto: Some(1800), ..axis(2000, 250) }, 2000, Rule::Veto),
            (
                "veto leaves the rest",
                Axis { veto: Some(1300), ..axis(2500, 250) },
                1500,
                Rule::Veto,
            ),
            ("veto above maximum", Axis { veto: Some(5900), ..axis(6000, 250) }, 6000, Rule::Veto),
            ("veto never grows", Axis { veto: Some(9000), ..axis(2000, 250) }, 2000, Rule::Veto),
            ("raised minimum", Axis { min: 1000, ..axis(250, 250) }, 1000, Rule::Minimum),
        ];
        for (name, axis, goal, rule) in table {
            assert_eq!(judge(axis), Verdict { goal, rule }, "{name}");
        }
    }

    #[test]
    fn four_to_one_takes_few_steps() {
        let mut base = 4000;
        let mut steps = 0;
        while base > 250 {
            base = judge(axis(base, 250)).goal;
            steps += 1;
        }
        assert!(steps <= 5, "{steps} steps");
    }

    proptest! {
        #[test]
        fn a_step_down_never_goes_below_what_would_trigger_growth(
            base in 1u64..9000, peak in 0u64..36, calm: bool, settled: bool, live: bool,
            veto in prop::option::of(0u64..9000),
        ) {
            let peak = peak * 250;
            let input = Axis { calm, settled, live, veto, ..axis(base, peak) };
            let verdict = judge(input);
            prop_assert!(verdict.goal <= input.max.max(base));
            prop_assert!(verdict.goal >= peak.min(input.max).min(base.max(input.min)));
            let again = judge(Axis { base: verdict.goal, ..input });
            prop_assert!(again.goal <= verdict.goal.max(input.min), "{verdict:?} then {again:?}");
        }
    }
}
