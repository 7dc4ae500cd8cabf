//! Decisions that a real VM's agent recorded, made again under other policies.
//!
//! The records are what `kubectl vm why NAME --json` prints: an object for each decision. They may come as lines, as an
//! array, or as an object that holds the array. Each is replayed by itself, in the order of their times: a new brain is
//! brought into the state that the record tells, is asked what to do, and what it decides is shown beside the record. For
//! the policy that made the record the decision is the same, but for what is said below.
//!
//! Records are sparse, and do not tell everything. What is taken for what:
//!
//! | not recorded | taken to be |
//! |---|---|
//! | how long the guest had been heard | a sample each second for 30 s back, of the demand that the record before told; no further back than a record without a live guest. A rule `wait-calm` or `step-down` says more and is believed |
//! | the peaks, in a record of the reference | those of these samples. Recorded peaks are taken as they are: they hold the reserve of the agent that made them |
//! | when the last step down was made | when the last record of one that was written was made, or as `wait-step` and `step-down` say |
//! | the step of memory | `--slot`, else the largest in which all bounds, plugged sizes, peaks and goals are multiples |
//! | the spec | the size before |
//! | a patch in flight | none |
//! | the cache's windows | as large all as the working set that the record tells |
//! | what a guest asked for, in a record of the reference | nothing, under `headroom` |
//!
//! A record of repeated decisions has the time of the first and the inputs of the last. The reference decides with the
//! configuration and the compute unit of the record; a record of another policy does not have them, nor its metrics: then
//! there is no decision of the reference, and none is guessed.

mod brain;
mod record;
mod table;

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use guest_units::{Bytes, Size};
use serde::Serialize;
use serde_json::{Value, json};

use self::brain::Past;
pub use self::record::{Record, read};
use crate::policy::PolicyName;

/// Memory is plugged in no smaller steps than this.
const LEAST_SLOT: u64 = 128 << 20;

/// Arguments of `replay`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Records, as `kubectl vm why NAME --json` prints them.
    pub file: PathBuf,
    /// Whose rules decide anew; may be repeated. Without it all.
    #[arg(long = "policy")]
    pub policies: Vec<PolicyName>,
    /// Step of the VM's memory, such as 128Mi. Without it the records' sizes tell.
    #[arg(long)]
    pub slot: Option<Bytes>,
    /// Prints an object for each record, one a line.
    #[arg(long)]
    pub json: bool,
}

/// A decision that was made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Again {
    /// Where all steps lead.
    pub desired: Size,
    /// What is done about it; `None`: nothing.
    pub decision: Option<Step>,
    /// The same was recorded.
    pub same: bool,
}

/// What a decision changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The size before.
    pub from: Size,
    /// The size aimed at.
    pub to: Size,
    /// The rules that decided.
    pub rule: String,
}

/// A record, and what each policy decides in its place: `None` where the record lacks its metrics.
#[derive(Debug, Clone)]
pub struct Row {
    /// The record.
    pub record: Record,
    /// In the order that was asked for.
    pub again: Vec<(PolicyName, Option<Again>)>,
}

/// Replays a file and prints the outcome.
///
/// # Errors
/// The file cannot be read or a record is wrong: then nothing is printed. Or printing fails.
pub fn run(args: &Args) -> Result<()> {
    let name = args.file.display();
    let text = std::fs::read_to_string(&args.file).with_context(|| name.to_string())?;
    let records = read(&text).map_err(anyhow::Error::msg).with_context(|| name.to_string())?;
    let policies = chosen(&args.policies);
    let rows = replay(records, &policies, args.slot);
    let lines = if args.json { rows.iter().map(object).collect() } else { table::lines(&rows) };
    let mut text = lines.join("\n");
    text.push('\n');
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write the outcome"),
    }
}

/// Each once, in the order of the command line.
fn chosen(asked: &[PolicyName]) -> Vec<PolicyName> {
    let all = if asked.is_empty() { &PolicyName::ALL } else { asked };
    let mut chosen = Vec::new();
    for policy in all {
        if !chosen.contains(policy) {
            chosen.push(*policy);
        }
    }
    chosen
}

/// Decides anew, under every policy, in the order of the records' times. Without a `slot` the records tell it.
#[must_use]
pub fn replay(mut records: Vec<Record>, policies: &[PolicyName], slot: Option<Bytes>) -> Vec<Row> {
    records.sort_by_key(|record| record.at);
    let slot = slot.filter(|slot| !slot.is_zero()).unwrap_or_else(|| common_slot(&records));
    let Some(first) = records.first().map(|record| record.at) else { return Vec::new() };
    let mut past = Past::default();
    let mut rows = Vec::new();
    for record in records {
        let now = brain::moment(record.at, first);
        let decide =
            |policy: &PolicyName| (*policy, brain::decide(&record, *policy, slot, &past, now));
        let again = policies.iter().map(decide).collect();
        past.add(&record, now);
        rows.push(Row { record, again });
    }
    rows
}

/// The largest step that all sizes are multiples of which come in such steps. What the scheduler permits need not be one.
fn common_slot(records: &[Record]) -> Bytes {
    let sizes = records.iter().flat_map(|record| {
        let inputs = &record.inputs;
        let peak = inputs.memory_peak.unwrap_or_default();
        [inputs.min.memory, inputs.max.memory, inputs.plugged.memory, peak, record.to.memory]
    });
    let whole = sizes.map(|size| size.0).filter(|size| size.is_multiple_of(LEAST_SLOT));
    Bytes(whole.fold(0, divisor).max(LEAST_SLOT))
}

/// The greatest common divisor; zero has them all.
fn divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A row as a line of JSON.
fn object(row: &Row) -> String {
    let Record { from, to, rule, outcome, attempts, .. } = &row.record;
    let again = row.again.iter().map(|(policy, again)| {
        let shown =
            again.as_ref().map_or_else(|| json!({"missing": "metrics"}), |again| json!(again));
        (policy.text().to_owned(), shown)
    });
    json!({
        "at": row.record.at.to_string(),
        "policy": row.record.policy().text(),
        "old": {"from": from, "to": to, "rule": rule, "outcome": outcome, "attempts": attempts},
        "new": again.collect::<serde_json::Map<String, Value>>(),
    })
    .to_string()
}
