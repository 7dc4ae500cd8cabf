//! A brain driven from outside: events of one VM come as lines of JSON, what the brain does leaves as lines of JSON.
//!
//! Every line of the input is `{"atMs":n,"EVENT":{…}}`: milliseconds since an origin, never less than in the line
//! before, and one event. Sizes are `{"cpuMilli":250,"memoryBytes":1073741824}`, *S* below; a limit *L* is
//! `{"min":S,"max":S,"slotBytes":n}`. Empty lines are passed over. Unknown fields are errors.
//!
//! | event | its fields; `?` may be absent | meaning |
//! |---|---|---|
//! | `start` | `limits` L, `firstGeneration`? 1, `computeUnit`? S | first line, and only there; the unit is the reference's step |
//! | `limits` | those of L | the bounds changed |
//! | `vm` | `spec` S, `approved`? S, `plugged` S | the VM object was seen |
//! | `sample` | `demand` S, `used` S, `system`? | the guest measured; `system` is `{"loadAverage1Min":x,"loadAverage5Min":x,"memoryUsageBytes":n,"memoryCachedBytes":n}` |
//! | `cache` | `workingSetPages` [n, …] | pages of 8 KiB that were used within 1, 2, … minutes |
//! | `guestAsks` | `want` S | the guest needs this at once |
//! | `guestConnected`, `guestLost` | | the connection to the guest |
//! | `permitAnswered` | `generation`, `permit` S, `reason`? | the scheduler's answer |
//! | `permitFailed` | `generation` | |
//! | `patched` | `generation` | the spec is now what the patch said |
//! | `patchFailed` | `generation`, `raced`? | `true`: another writer was faster |
//! | `guestFine`, `guestTold`, `guestFailed` | `generation` | the guest's answer |
//! | `guestVeto` | `generation`, `least` S | it refuses to go below |
//! | `newest` | `generation` | a counterparty has seen this one |
//! | `tick` | | nothing happened: what does the brain do by itself? |
//!
//! After each event the brain is asked what to do until it names nothing more, and one line is printed:
//!
//! ```text
//! {"atMs":n,"line":n,"event":"vm","actions":[…],"wakeAtMs":n|null,"desired":S|null,"permit":S|null}
//! ```
//!
//! `actions` were reported to the brain as started, in this order; each is an object with `action`, `why`, `generation` and
//!
//! | action | its sizes |
//! |---|---|
//! | `askPermit` | `want`, `least`, `current` |
//! | `patchVm` | `from`, `size`, and `approval`: the generation of the permit that it carries, or null |
//! | `askGuest` | `from`, `to` |
//! | `tellGuest` | `plugged` |
//!
//! Nobody answers them unless a later line does. The brain's own wake-ups before the next event's time happen by
//! themselves, and are printed as events `tick` without a `line`. `desired` is null before the VM object was seen.
//!
//! What is wrong with a line is said in one line that names it and the field; nothing is printed for that line.

mod input;
mod output;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use guest_units::Moment;
use host_scaling::reference::ReferenceConfig;
use host_scaling::{Event, Scaler};

pub(crate) use self::input::Load;
use self::input::What;
use self::output::{Act, Answer};
use crate::json;
use crate::policy::{self, PolicyName};

/// So many rounds of actions at one moment are a fault of the brain.
const MOST_ROUNDS: u32 = 64;

/// Arguments of `timeline`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Whose rules decide.
    #[arg(long)]
    pub policy: PolicyName,
    /// File with a JSON object: what differs from the configuration that the reference ships.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Drives a brain by the lines of the standard input.
///
/// # Errors
/// The configuration or a line is wrong, or reading or writing fails.
pub fn run(args: &Args) -> Result<()> {
    let config = match &args.config {
        None => ReferenceConfig::default(),
        Some(_) if args.policy == PolicyName::Headroom => {
            bail!("--config: the policy headroom has no such configuration")
        }
        Some(file) => policy::read_config(file)?,
    };
    drive(&mut Timeline::new(args.policy, config), io::stdin().lock(), io::stdout().lock())
}

/// Gives every line to the timeline and its answers to `output`.
///
/// # Errors
/// A line is wrong, or reading or writing fails; a reader that went away is no error.
pub fn drive(timeline: &mut Timeline, input: impl BufRead, mut output: impl Write) -> Result<()> {
    for (number, line) in (1..).zip(input.lines()) {
        let line = line.with_context(|| format!("line {number}"))?;
        for answer in timeline.line(&line).map_err(anyhow::Error::msg)? {
            match writeln!(output, "{answer}").and_then(|()| output.flush()) {
                Err(err) if err.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other.context("write an answer")?,
            }
        }
    }
    timeline.end().map_err(anyhow::Error::msg)
}

/// One brain and the time it has got to.
#[derive(Debug)]
pub struct Timeline {
    policy: PolicyName,
    config: ReferenceConfig,
    lines: u64,
    now: Moment,
    scaler: Option<Scaler>,
}

impl Timeline {
    /// Before its first line. The configuration is the reference's.
    #[must_use]
    pub fn new(policy: PolicyName, config: ReferenceConfig) -> Self {
        Self { policy, config, lines: 0, now: Moment::ZERO, scaler: None }
    }

    /// The answers to one line of the input, each a line without its end.
    ///
    /// # Errors
    /// What is wrong with the line, with its number and the field. The brain has not seen it then.
    pub fn line(&mut self, text: &str) -> Result<Vec<String>, String> {
        self.lines += 1;
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        self.happens(text).map_err(|err| format!("line {}: {err}", self.lines))
    }

    /// No more lines come.
    ///
    /// # Errors
    /// There was none.
    pub fn end(&self) -> Result<(), String> {
        match self.scaler {
            Some(_) => Ok(()),
            None => Err(format!("line {}: start: is missing", self.lines + 1)),
        }
    }

    fn happens(&mut self, text: &str) -> Result<Vec<String>, String> {
        let (at, name, what) = json::read::<input::Line>(text)?.event()?;
        let before = self.now;
        if at < before {
            return Err(format!("atMs: {} is before {}", millis(at), millis(before)));
        }
        let event = match (what, &self.scaler) {
            (What::Start(start), None) => {
                let policy = self.policy.policy(self.config, start.unit());
                self.scaler = Some(Scaler::new(start.limits.0, policy, start.first_generation.0));
                None
            }
            (What::Start(_), Some(_)) => return Err("start: only the first line has it".to_owned()),
            (_, None) => return Err("start: must come first".to_owned()),
            (What::Event(event), Some(_)) => Some(event),
            (What::Tick, Some(_)) => None,
        };
        let mut answers = Vec::new();
        let Some(scaler) = &mut self.scaler else { return Ok(answers) };
        while let Some(wake) = scaler.next(self.now).wake_at.filter(|wake| *wake < at) {
            self.now = wake;
            answers.push(answer(scaler, wake, (None, "tick"), None)?);
        }
        self.now = at;
        answers.push(answer(scaler, at, (Some(self.lines), name), event)?);
        Ok(answers)
    }
}

/// Lets the event happen, then all that follows from it at this moment.
fn answer(
    scaler: &mut Scaler,
    now: Moment,
    (line, name): (Option<u64>, &'static str),
    event: Option<Event>,
) -> Result<String, String> {
    if let Some(event) = event {
        scaler.handle(event, now);
    }
    let mut actions = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let next = scaler.next(now);
        if next.start.is_empty() {
            let overview = scaler.overview(now);
            let answer = Answer {
                at_ms: millis(now),
                line,
                event: name,
                actions,
                wake_at_ms: next.wake_at.map(millis),
                desired: overview.map(|it| it.desired.into()),
                permit: overview.and_then(|it| it.permit).map(Into::into),
            };
            return serde_json::to_string(&answer).map_err(|err| err.to_string());
        }
        for (action, why) in next.start {
            scaler.handle(Event::Started(action), now);
            actions.push(Act::new(action, why));
        }
    }
    Err(format!("{name}: the brain starts actions without end"))
}

/// Milliseconds since the origin.
fn millis(at: Moment) -> u64 {
    u64::try_from(at.0.as_millis()).unwrap_or(u64::MAX)
}
