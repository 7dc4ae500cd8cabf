//! The kinds of database that a fleet is made of.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;

/// How a generated VM behaves. Parts are of the largest size that the VM may have, unless they are amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Archetype {
    /// Practically constant: 2 to 10 mCPU and some 3 % of memory; twice a day somebody looks for a minute at most.
    Idle,
    /// At most 10 mCPU for 40 minutes on average, at least 6, then half a minute to five of queries at up to 60 % of CPU and 25 %
    /// of memory.
    IdleToZero,
    /// A day with one peak, at the same hour each day, and two quiet days a week; a new level every five minutes or so.
    Diurnal,
    /// Quiet, but for a job every 5 to 60 minutes, on the clock: 60 to 100 % of CPU for up to three minutes, memory growing with it.
    CronSpikes,
    /// 25 to 60 % of CPU around the clock with a little noise every minute, and a cache of about half of the memory.
    SteadyOltp,
    /// Queries of minutes, every 20 minutes on average: CPU of one worker to all, memory rising steadily to 30 to 85 %, held for a
    /// moment and given back at once.
    AnalyticRamps,
    /// Bursts every five minutes on average whose height and length have heavy tails: most are small, a few take everything.
    HeavyTailedBursts,
    /// Every ten minutes on average memory rises to 40 to 95 % at 64 MiB to 4 GiB a second, is held for up to a minute and given
    /// back at once.
    MemoryRamps,
}

impl Archetype {
    /// Every archetype, the quietest first.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::IdleToZero => "idle-to-zero",
            Self::Diurnal => "diurnal",
            Self::CronSpikes => "cron-spikes",
            Self::SteadyOltp => "steady-oltp",
            Self::AnalyticRamps => "analytic-ramps",
            Self::HeavyTailedBursts => "heavy-tailed-bursts",
            Self::MemoryRamps => "memory-ramps",
        }
    }
}

impl fmt::Display for Archetype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no archetype has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no archetype is named {0:?}")]
pub struct UnknownArchetype(pub String);

impl FromStr for Archetype {
    type Err = UnknownArchetype;

    fn from_str(name: &str) -> Result<Self, UnknownArchetype> {
        let found = Self::all().iter().find(|archetype| archetype.name() == name);
        found.copied().ok_or_else(|| UnknownArchetype(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        assert_eq!(Archetype::all().len(), 8);
        for archetype in Archetype::all() {
            assert_eq!(archetype.to_string().parse(), Ok(*archetype));
            let value = archetype.to_possible_value().unwrap();
            assert_eq!(value.get_name(), archetype.name());
        }
        let unknown = "busy".parse::<Archetype>().unwrap_err();
        assert_eq!(unknown.to_string(), "no archetype is named \"busy\"");
    }
}
