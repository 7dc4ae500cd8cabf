//! The report: one HTML page that needs nothing else, with the verdict, the figures, the charts, the time line and every decision.

mod charts;
mod style;

use std::fmt::Write as _;

use super::checks::{Check, Figure};
use super::recording::{Decision, Load, Phase, Recording, Transaction};
use super::svg::escape;
use super::timeline::{self, Growth};
use super::{cpu, memory};

/// The whole page.
pub(crate) fn page(recording: &Recording, checks: &[Check], figures: &[Figure]) -> String {
    let passed = checks.iter().all(|check| check.passed);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Postgres under a changing load</title>\n<style>{}</style>\n</head>\n<body>\n<main>\n\
         <h1>Postgres under a changing load</h1>\n<p class=\"verdict {}\">{}</p>\n\
         <p>A Postgres VM in a Kubernetes pod, {}, under pgbench. Its CPU and memory follow the load; \
         the server is never restarted and no connection breaks. Recorded {}.</p>\n",
        style::STYLE,
        if passed { "good" } else { "bad" },
        if passed { "All checks passed." } else { "Not all checks passed." },
        bounds(recording),
        recording.origin().rfc3339()
    );
    out += &cards(figures);
    out += "<h2>What happened</h2>\n";
    out += &charts::all(recording);
    out += &stages(recording);
    out += "<h2>The way of one growth</h2>\n";
    out += &timeline::chosen(recording).map_or_else(
        || "<p>No growth of memory could be followed through all logs.</p>\n".to_owned(),
        |growth| one_growth(&growth),
    );
    out += "<h2>Checks</h2>\n";
    out += &verdicts(checks);
    out += "<h2>Decisions</h2>\n";
    out += &decisions(recording);
    out + "</main>\n</body>\n</html>\n"
}

fn bounds(recording: &Recording) -> String {
    recording.bounds().map_or_else(
        || "never seen".to_owned(),
        |(min, max)| {
            format!(
                "between {} and {} and between {} and {}",
                cpu(min.cpu),
                cpu(max.cpu),
                memory(min.memory),
                memory(max.memory)
            )
        },
    )
}

fn cards(figures: &[Figure]) -> String {
    let mut out = "<div class=\"cards\">\n".to_owned();
    for figure in figures {
        let value = figure.seconds.map_or_else(|| "not seen".to_owned(), seconds);
        let (class, target) = match (figure.met(), figure.target) {
            (Some(true), Some(target)) => ("good", format!("target: at most {target:.0} s, met")),
            (_, Some(target)) => ("late", format!("target: at most {target:.0} s, missed")),
            _ => ("", "no target".to_owned()),
        };
        let _infallible = writeln!(
            out,
            "<div class=\"card {class}\"><b>{value}</b><span>{}</span><small>{target}</small></div>",
            escape(figure.what)
        );
    }
    out + "</div>\n<p class=\"note\">Times are those of this machine and depend on its speed; they are shown, not judged.</p>\n"
}

/// Seconds for people.
pub(crate) fn seconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.2} s") } else { format!("{value:.1} s") }
}

/// The value that this share of the sorted values does not exceed.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil();
    let index = (0..sorted.len()).find(|index| (*index + 1) as f64 >= rank)?;
    sorted.get(index).copied()
}

/// Latencies in order.
pub(crate) fn sorted<'a>(all: impl Iterator<Item = &'a Transaction>) -> Vec<f64> {
    let mut values: Vec<f64> = all.map(|it| it.latency_ms).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn stages(recording: &Recording) -> String {
    let mut out = "<div class=\"wide\"><table><tr><th>stage<th>time<th>transactions/s<th>steady look-up p50<th>p99\
                   <th>most CPU plugged<th>most memory plugged</tr>\n"
        .to_owned();
    for phase in &recording.phases {
        let _infallible = writeln!(out, "{}", stage(recording, phase));
    }
    out + "</table></div>\n"
}

fn stage(recording: &Recording, phase: &Phase) -> String {
    let ended = phase.ended.unwrap_or(phase.begun);
    let time = ended.since(phase.begun);
    let during =
        || recording.transactions.iter().filter(|it| it.at >= phase.begun && it.at < ended);
    let steady = sorted(during().filter(|it| it.load == Load::Steady));
    let ms = |share: f64| {
        percentile(&steady, share).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"))
    };
    let plugged = || {
        let samples = recording.vm.iter().filter(|it| it.at < ended);
        let first = samples.clone().rfind(|it| it.at <= phase.begun);
        first
            .into_iter()
            .chain(samples.filter(|it| it.at > phase.begun))
            .filter_map(|it| it.plugged)
    };
    let most_cpu = plugged().map(|it| it.cpu).max();
    let most_memory = plugged().map(|it| it.memory).max();
    format!(
        "<tr><td>{}<td>{}<td>{:.1}<td>{}<td>{}<td>{}<td>{}</tr>",
        phase.stage,
        seconds(time),
        during().count() as f64 / time.max(0.001),
        ms(0.5),
        ms(0.99),
        most_cpu.map_or_else(|| "-".to_owned(), cpu),
        most_memory.map_or_else(|| "-".to_owned(), memory)
    )
}

fn one_growth(growth: &Growth) -> String {
    let from = growth.from.map_or_else(|| "?".to_owned(), memory);
    let mut out = format!(
        "<p>From {from} to {}, {:.0} ms from the guest's ask to its confirmation. Each bar is the time since the \
         step before it; the times are those of the parts' own logs.</p>\n{}",
        memory(growth.to),
        growth.total_ms(),
        charts::growth(growth)
    );
    out += "<div class=\"wide\"><table><tr><th>step<th>written by<th>logged at<th>after the ask<th>after the step before</tr>\n";
    let mut before = 0.0;
    for hop in &growth.hops {
        let _infallible = writeln!(
            out,
            "<tr><td>{}<td>{}<td><code>{}</code><td>{:.1} ms<td>{:.1} ms</tr>",
            hop.kind.message(),
            hop.part.name(),
            hop.at.rfc3339(),
            hop.ms,
            hop.ms - before
        );
        before = hop.ms;
    }
    out + "</table></div>\n"
}

fn verdicts(checks: &[Check]) -> String {
    let mut out = "<div class=\"wide\"><table><tr><th>check<th>verdict<th>seen</tr>\n".to_owned();
    for check in checks {
        let (class, word) = if check.passed { ("good", "passed") } else { ("bad", "failed") };
        let _infallible = writeln!(
            out,
            "<tr><td>{}<td class=\"{class}\">{word}<td>{}</tr>",
            check.what,
            escape(&check.seen)
        );
    }
    out + "</table></div>\n"
}

fn decisions(recording: &Recording) -> String {
    let mut out = "<div class=\"wide\"><table><tr><th>second<th>CPU<th>memory<th>rule<th>decided from<th>outcome</tr>\n".to_owned();
    for decision in &recording.decisions {
        let Decision { at, from, to, rule, outcome, attempts, inputs } = decision;
        let change = |from: String, to: String| {
            if from == to { from } else { format!("{from} → <b>{to}</b>") }
        };
        let tries = if *attempts > 1 { format!(" ({attempts} times)") } else { String::new() };
        let _infallible = writeln!(
            out,
            "<tr><td>{:.2}<td>{}<td>{}<td>{}<td>{}<td>{}{tries}</tr>",
            at.since(recording.origin()),
            change(cpu(from.cpu), cpu(to.cpu)),
            change(memory(from.memory), memory(to.memory)),
            escape(rule),
            escape(inputs),
            escape(outcome)
        );
    }
    out + "</table></div>\n"
}

#[cfg(test)]
mod tests;
