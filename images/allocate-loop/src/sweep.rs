//! The order of sizes: from nothing up to the maximum, down to the minimum, up again.

use std::fmt;

use crate::STEP_BYTES;

/// What the user asked for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) least: u64,
    pub(crate) most: u64,
    /// How often the minimum is reached; for ever if `None`.
    pub(crate) cycles: Option<u64>,
}

impl Options {
    /// Reads the command line; the error says what is wrong with it.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let words: Vec<String> = words.into_iter().collect();
        let (least, most, cycles) = match words.as_slice() {
            [least, most] => (least, most, None),
            [least, most, cycles] => (least, most, Some(number("CYCLES", cycles)?)),
            _ => return Err(format!("{} arguments given", words.len())),
        };
        let (least, most) = (mebibytes("MIN", least)?, mebibytes("MAX", most)?);
        if least >= most {
            return Err("MIN must be smaller than MAX".into());
        }
        Ok(Self { least, most, cycles })
    }
}

fn number(name: &str, word: &str) -> Result<u64, String> {
    word.parse().map_err(|err| format!("{name} is {word}: {err}"))
}

fn mebibytes(name: &str, word: &str) -> Result<u64, String> {
    number(name, word)?.checked_mul(1 << 20).ok_or_else(|| format!("{name} is {word}: too large"))
}

/// Where the size goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// The sizes one after another, one step apart.
#[derive(Debug)]
pub(crate) struct Sweep {
    options: Options,
    size: u64,
    direction: Direction,
    cycles_done: u64,
}

impl Sweep {
    pub(crate) fn new(options: &Options) -> Self {
        Self { options: *options, size: 0, direction: Direction::Up, cycles_done: 0 }
    }
}

impl Iterator for Sweep {
    type Item = (Direction, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let Options { least, most, cycles } = self.options;
        if self.size >= most {
            self.direction = Direction::Down;
        } else if self.direction == Direction::Down && self.size <= least {
            self.direction = Direction::Up;
            self.cycles_done += 1;
        }
        if cycles.is_some_and(|cycles| self.cycles_done >= cycles) {
            return None;
        }
        // Both bounds are whole steps away from zero.
        self.size = match self.direction {
            Direction::Up => self.size + STEP_BYTES,
            Direction::Down => self.size - STEP_BYTES,
        };
        Some((self.direction, self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments() {
        let found = parse("256 2280").unwrap();
        assert_eq!(found, Options { least: 256 << 20, most: 2280 << 20, cycles: None });
        assert_eq!(parse("0 1 3").unwrap().cycles, Some(3));
        for (line, problem) in [
            ("", "0 arguments"),
            ("1 2 3 4", "4 arguments"),
            ("x 2", "MIN is x"),
            ("1 -2", "MAX is -2"),
            ("2 2", "smaller"),
            ("1 99999999999999999", "too large"),
            ("1 2 many", "CYCLES is many"),
        ] {
            assert!(parse(line).unwrap_err().contains(problem), "{line}");
        }
    }

    #[test]
    fn sizes_sweep_between_the_bounds_in_steps() {
        let options = Options { least: 1 << 20, most: 2 << 20, cycles: Some(2) };
        let sizes: Vec<u64> = Sweep::new(&options).map(|(_, size)| size / STEP_BYTES).collect();
        let rising: Vec<u64> = (1..=8).collect();
        let rest = [7, 6, 5, 4, 5, 6, 7, 8, 7, 6, 5, 4];
        assert_eq!(sizes, [rising, rest.to_vec()].concat());
    }

    #[test]
    fn without_a_number_of_cycles_it_never_ends() {
        let options = Options { least: 0, most: 1 << 20, cycles: None };
        let mut sweep = Sweep::new(&options).skip(10_000);
        assert!(sweep.next().is_some_and(|(_, size)| size <= options.most));
    }
}
