//! Counting what passed and failed, from the output of `cargo test` and from the scenarios.

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

/// How many checks passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u64,
    failed: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

impl Tally {
    /// Adds up the `test result:` lines of `cargo test`.
    pub fn of_cargo_test(output: &str) -> Self {
        let count = |line: &str, word: &str| -> u64 {
            let found = line.split([';', '.']).find_map(|part| part.trim().strip_suffix(word));
            found.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        let lines = output.lines().filter_map(|line| line.strip_prefix("test result:"));
        lines.fold(Self::default(), |sum, line| Self {
            passed: sum.passed + count(line, "passed"),
            failed: sum.failed + count(line, "failed"),
        })
    }

    /// The sum over all parts.
    pub fn sum(parts: &[Part]) -> Self {
        parts.iter().fold(Self::default(), |sum, part| Self {
            passed: sum.passed + part.tally.passed,
            failed: sum.failed + part.tally.failed,
        })
    }

    /// Something ran, and nothing failed.
    pub fn is_success(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

/// One part of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    name: String,
    took: Duration,
    tally: Tally,
}

impl Part {
    /// A check that is no test: it counts only when it fails, so that no run passes by checks alone.
    pub fn check(name: &str, took: Duration, passed: bool) -> Self {
        let tally = Tally { passed: 0, failed: u64::from(!passed) };
        Self { name: name.into(), took, tally }
    }

    /// A scenario.
    pub fn scenario(name: &str, took: Duration, passed: bool) -> Self {
        let tally = Tally { passed: u64::from(passed), failed: u64::from(!passed) };
        Self { name: name.into(), took, tally }
    }

    /// Many tests. A run that failed without a failed test (it did not compile), or without any test, counts as one failure.
    pub fn tests(name: &str, took: Duration, counted: Tally, succeeded: bool) -> Self {
        let silent = counted.failed == 0 && (!succeeded || counted.passed == 0);
        let tally = Tally { failed: counted.failed + u64::from(silent), ..counted };
        Self { name: name.into(), took, tally }
    }
}

/// The parts with their times, for people.
pub fn table(parts: &[Part]) -> String {
    let width = parts.iter().map(|part| part.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$} {:>9}  RESULT\n", "PART", "SECONDS");
    for Part { name, took, tally } in parts {
        let result = match tally {
            Tally { passed: 0 | 1, failed: 0 } => "ok".to_owned(),
            Tally { passed: 0, failed: 1 } => "FAILED".to_owned(),
            tally => tally.to_string(),
        };
        let _infallible = writeln!(text, "{name:width$} {:>9.1}  {result}", took.as_secs_f64());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added_up() {
        let output = "running 5 tests\n\
            test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            noise: 7 passed\n\
            test result: FAILED. 11 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let tally = Tally::of_cargo_test(output);
        assert_eq!(tally.to_string(), "16 passed, 2 failed");
        assert!(!tally.is_success());
    }

    #[test]
    fn a_run_without_tests_fails() {
        let none = Tally::default();
        let part = Part::tests("tests", Duration::ZERO, none, true);
        assert_eq!(Tally::sum(&[part]).to_string(), "0 passed, 1 failed");
        assert!(!Tally::sum(&[Part::check("format", Duration::ZERO, true)]).is_success());
    }

    #[test]
    fn tests_that_do_not_compile_fail() {
        let counted = Tally { passed: 3, failed: 0 };
        let part = Part::tests("tests", Duration::ZERO, counted, false);
        assert_eq!(Tally::sum(&[part]).to_string(), "3 passed, 1 failed");
    }

    #[test]
    fn parts_add_up_and_are_shown_with_their_times() {
        let parts = [
            Part::check("format", Duration::from_millis(1500), true),
            Part::tests("tests", Duration::from_secs(60), Tally { passed: 9, failed: 0 }, true),
            Part::scenario("it scales", Duration::from_secs(7), false),
        ];
        assert_eq!(Tally::sum(&parts).to_string(), "9 passed, 1 failed");
        let text = table(&parts);
        assert!(text.contains("format          1.5  ok"), "{text}");
        assert!(text.contains("tests          60.0  9 passed, 0 failed"), "{text}");
        assert!(text.contains("it scales       7.0  FAILED"), "{text}");
    }
}
