//! The report's charts: what is drawn from the recording.

use std::fmt::Write as _;

use guest_units::Size;

use super::super::logs::Kind;
use super::super::recording::{Load, Recording, TopSample};
use super::super::shown;
use super::super::svg::{Chart, Scale, Series, Shape, Time, ticks};
use super::super::timeline::Growth;
use super::{percentile, sorted};

/// Latencies are put together over so many seconds: enough of them for a p99.
const WINDOW: f64 = 2.0;

/// All charts over time, one below the other.
pub(super) fn all(recording: &Recording) -> String {
    let origin = recording.origin();
    let second = |at: super::super::recording::At| at.since(origin);
    let end = recording.phases.last().and_then(|phase| phase.ended).map_or(1.0, second);
    let stages = recording.phases.iter().map(|phase| {
        (second(phase.begun), phase.ended.map_or(end, second), phase.stage.to_string())
    });
    let time = Time { end, stages: stages.collect() };
    let charts = [
        offered(recording),
        rate(recording),
        latency(recording),
        resource(recording, "CPU", "vCPU", |size| f64::from(size.cpu.0) / 1000.0),
        resource(recording, "Memory", "MiB", |size| size.memory.0 as f64 / f64::from(1 << 20)),
    ];
    let drawn: String = charts.iter().map(|chart| chart.draw(&time)).collect();
    drawn
        + "<p class=\"note\">Dots on the axis of CPU and memory are decisions; pointing at one shows it. \
           The latency is that of the steady look-ups, measured from when each was due.</p>\n"
}

/// Style and label of a load.
fn of(load: Load) -> (&'static str, &'static str) {
    match load {
        Load::Steady => ("steady", "steady look-ups"),
        Load::Cpu => ("cpu", "look-ups as fast as they go"),
        Load::Memory => ("memory", "sorts in memory"),
    }
}

/// Clients under load over time, a line for each kind.
fn offered(recording: &Recording) -> Chart {
    let origin = recording.origin();
    let series = Load::ALL.map(|load| {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for run in recording.runs.iter().filter(|run| run.load == load) {
            let (begun, clients) = (run.begun.since(origin), f64::from(run.clients));
            let ended = run.ended.unwrap_or(run.begun).since(origin);
            points.extend([(begun, 0.0), (begun, clients)]);
            points.push((ended, 0.0));
        }
        let (class, label) = of(load);
        Series { class, label, shape: Shape::Area, points }
    });
    chart("Offered load", "clients", 150.0, series.into())
}

fn chart(title: &'static str, unit: &'static str, height: f64, series: Vec<Series>) -> Chart {
    Chart { title, unit, height, log: false, series, limits: Vec::new(), marks: Vec::new() }
}

/// Transactions a second, as pgbench's progress has them.
fn rate(recording: &Recording) -> Chart {
    let origin = recording.origin();
    let series = Load::ALL.map(|load| {
        let lines = recording.progress.iter().filter(|it| it.load == load && it.at >= origin);
        let points = lines.map(|it| (it.at.since(origin), it.tps)).collect();
        let (class, label) = of(load);
        Series { class, label, shape: Shape::Line, points }
    });
    Chart { log: true, ..chart("Transactions", "1/s", 180.0, series.into()) }
}

/// p50 and p99 of the steady look-ups.
fn latency(recording: &Recording) -> Chart {
    let origin = recording.origin();
    let steady: Vec<_> =
        recording.transactions.iter().filter(|it| it.load == Load::Steady).copied().collect();
    let end = steady.iter().map(|it| it.at.since(origin)).fold(0.0, f64::max);
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    let mut from = 0.0;
    while from < end {
        let within = |at: f64| at >= from && at < from + WINDOW;
        let values = sorted(steady.iter().filter(|it| within(it.at.since(origin))));
        let middle = from + WINDOW / 2.0;
        p50.extend(percentile(&values, 0.5).map(|ms| (middle, ms)));
        p99.extend(percentile(&values, 0.99).map(|ms| (middle, ms)));
        from += WINDOW;
    }
    let line = |class, label, points| Series { class, label, shape: Shape::Line, points };
    let series = vec![line("p50", "p50", p50), line("p99", "p99", p99)];
    Chart { log: true, ..chart("Latency of the steady look-ups", "ms", 180.0, series) }
}

/// Used, desired, permitted and plugged of one resource.
fn resource(
    recording: &Recording,
    title: &'static str,
    unit: &'static str,
    amount: fn(Size) -> f64,
) -> Chart {
    let origin = recording.origin();
    let top = |of: fn(&TopSample) -> Size| -> Vec<(f64, f64)> {
        let known = recording.top.iter().filter(|it| it.at >= origin && of(it) != Size::ZERO);
        known.map(|it| (it.at.since(origin), amount(of(it)))).collect()
    };
    let mut plugged: Vec<(f64, f64)> = recording
        .vm
        .iter()
        .filter_map(|it| Some((it.at.since(origin), amount(it.plugged?))))
        .collect();
    // Of what came before the first stage only the last holds in it.
    let earlier = plugged.iter().take_while(|(at, _)| *at < 0.0).count();
    plugged.drain(..earlier.saturating_sub(1));
    // The object is seen when it changes: its last state holds to the end.
    if let (Some((_, last)), Some(end)) =
        (plugged.last().copied(), recording.phases.last().and_then(|phase| phase.ended))
    {
        plugged.push((end.since(origin), last));
    }
    let line = |class, label, shape, points| Series { class, label, shape, points };
    let series = vec![
        line("plugged", "plugged", Shape::Area, plugged),
        line("permitted", "permitted", Shape::Steps, top(|it| it.permit)),
        line("desired", "desired", Shape::Steps, top(|it| it.desired)),
        line("used", "used", Shape::Line, top(|it| it.used)),
    ];
    let limits = recording.bounds().map_or_else(Vec::new, |(min, max)| {
        vec![(amount(min), "minimum"), (amount(max), "maximum")]
    });
    let decisions = recording.decisions.iter().filter(|it| it.at >= origin);
    let differs = decisions.filter(|it| amount(it.from) != amount(it.to));
    let marks = differs
        .map(|it| {
            let what =
                format!("{} → {}: {}, {}", shown(it.from), shown(it.to), it.rule, it.outcome);
            (it.at.since(origin), what)
        })
        .collect();
    Chart { limits, marks, ..chart(title, unit, 240.0, series) }
}

const ROW: f64 = 26.0;
const LABELS: f64 = 270.0;
const WIDTH: f64 = 960.0;
const HEAD: f64 = 26.0;

/// What the time before a step was spent with.
fn meaning(kind: Kind) -> &'static str {
    match kind {
        Kind::Demanded => "the guest's demand has arrived",
        Kind::PermitAsked => "agent decides, asks for a permit",
        Kind::PermitDecided => "scheduler books, resizes the pod",
        Kind::PermitAnswered => "the permit is back",
        Kind::VmPatched => "agent patches the VM object",
        Kind::OrderSent => "controller sees it, gives the order",
        Kind::PlugStarted => "runner takes the order",
        Kind::PlugDone => "QMP: the memory is plugged",
        Kind::OrderDone => "the controller knows",
        Kind::GuestConfirmed => "the guest has confirmed",
    }
}

/// The hops of one growth as bars on a common axis.
pub(super) fn growth(growth: &Growth) -> String {
    let values = ticks(growth.total_ms(), 8.0);
    let high = values[values.len() - 1];
    let x = Scale { low: 0.0, high, log: false, start: LABELS, end: WIDTH - 70.0 };
    let floor = HEAD + ROW * growth.hops.len() as f64;
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"Time line of one growth\">\n",
        floor + 34.0
    );
    for value in values {
        let place = x.place(value);
        let _infallible = writeln!(
            out,
            "<line class=\"grid\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{HEAD}\" y2=\"{floor:.1}\"/>\
             <text class=\"axis\" text-anchor=\"middle\" x=\"{place:.1}\" y=\"{:.1}\">{value:.0}</text>",
            floor + 16.0
        );
    }
    let _infallible = writeln!(
        out,
        "<text class=\"axis\" text-anchor=\"end\" x=\"{WIDTH}\" y=\"{:.1}\">ms after the ask</text>",
        floor + 31.0
    );
    let mut before = 0.0;
    for (row, hop) in growth.hops.iter().enumerate() {
        let top = HEAD + ROW * row as f64;
        let (left, right) = (x.place(before), x.place(hop.ms));
        let _infallible = writeln!(
            out,
            "<text x=\"0\" y=\"{base:.1}\">{}</text>\
             <rect class=\"bar {}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>\
             <text class=\"axis\" x=\"{:.1}\" y=\"{base:.1}\">+{:.0} ms</text>",
            meaning(hop.kind),
            hop.part.name(),
            top + 6.0,
            (right - left).max(2.0),
            ROW - 10.0,
            right + 6.0,
            hop.ms - before,
            base = top + 18.0
        );
        before = hop.ms;
    }
    parts(&mut out);
    out + "</svg>\n"
}

/// Whose bar has which colour.
fn parts(out: &mut String) {
    let mut left = LABELS;
    for name in ["agent", "scheduler", "controller", "runner"] {
        let _infallible = writeln!(
            out,
            "<rect class=\"bar {name}\" x=\"{left:.0}\" y=\"4\" width=\"14\" height=\"10\" rx=\"2\"/>\
             <text class=\"axis\" x=\"{:.0}\" y=\"14\">{name}</text>",
            left + 20.0
        );
        left += 110.0;
    }
}
