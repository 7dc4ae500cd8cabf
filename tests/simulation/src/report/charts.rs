//! What is drawn of a recording: the fleet over time, how numbers spread over the VMs, and some VMs from near.

use super::bucket::{Bucket, Buckets, Sums};
use super::closeup::{Point, WINDOW};
use super::recorder::{Recording, VmRecord};
use super::svg::{Bar, Chart, Mark, Series, Shape, bars, number};
use crate::quality::FleetReport;

const SECOND: f64 = 1e9;
const GIB: f64 = (1_u64 << 30) as f64;

/// A value of each bucket, made of it and its seconds, at the second at which it begins; the last one again at its end.
fn over_time(buckets: &Buckets, value: impl Fn(&Bucket, f64) -> f64) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    for (from, to, bucket) in buckets.spans() {
        let (from, to) = (from as f64 / SECOND, to as f64 / SECOND);
        let value = value(bucket, to - from);
        points.pop();
        points.extend([(from, value), (to, value)]);
    }
    points
}

fn whole(buckets: &Buckets) -> (f64, f64) {
    (0.0, buckets.spans().last().map_or(0.0, |(_, to, _)| to as f64 / SECOND))
}

/// The mean over some seconds, in whole CPUs, of twice an integral of thousandths over nanoseconds.
fn cpus(twice: u128, seconds: f64) -> f64 {
    twice as f64 / 2.0 / SECOND / 1000.0 / seconds
}

/// The same of bytes, in GiB.
fn gib(twice: u128, seconds: f64) -> f64 {
    twice as f64 / 2.0 / SECOND / GIB / seconds
}

fn of(class: &'static str, label: &'static str, shape: Shape, points: Vec<(f64, f64)>) -> Series {
    Series { class, label, shape, points }
}

fn kills(buckets: &Buckets) -> Vec<Mark> {
    let killed = buckets.spans().filter(|(_, _, bucket)| bucket.kills > 0);
    let mark = |(from, to, bucket): (u64, u64, &Bucket)| Mark {
        at: (from + (to - from) / 2) as f64 / SECOND,
        count: bucket.kills,
        text: format!("OOM kills: {}", bucket.kills),
    };
    killed.map(mark).collect()
}

/// Demand and size of CPU and of memory over the whole time, of one VM or of many.
fn sizes(whose: &str, buckets: &Buckets, height: f64) -> [Chart; 2] {
    let cpu = vec![
        of(
            "size",
            "plugged",
            Shape::Area,
            over_time(buckets, |it, span| cpus(2 * it.cpu.sized, span)),
        ),
        of(
            "demand",
            "demanded",
            Shape::Steps,
            over_time(buckets, |it, span| cpus(it.cpu.demanded2, span)),
        ),
    ];
    let memory = vec![
        of(
            "size",
            "plugged",
            Shape::Area,
            over_time(buckets, |it, span| gib(2 * it.memory.sized, span)),
        ),
        of("held", "held", Shape::Steps, over_time(buckets, |it, span| gib(it.held2, span))),
        of(
            "demand",
            "wished for",
            Shape::Steps,
            over_time(buckets, |it, span| gib(it.memory.demanded2, span)),
        ),
    ];
    let time = whole(buckets);
    let chart = |what, unit, series, marks| Chart {
        title: format!("{what} {whose}"),
        unit,
        height,
        time,
        series,
        marks,
    };
    [chart("CPU", "vCPU", cpu, Vec::new()), chart("Memory", "GiB", memory, kills(buckets))]
}

/// CPU and memory side by side in one chart.
fn both(
    title: &str,
    unit: &'static str,
    buckets: &Buckets,
    value: impl Fn(&Bucket, &Sums, f64) -> f64,
) -> Chart {
    let cpu = over_time(buckets, |it, span| value(it, &it.cpu, span));
    let memory = over_time(buckets, |it, span| value(it, &it.memory, span));
    Chart {
        title: title.to_owned(),
        unit,
        height: 190.0,
        time: whole(buckets),
        series: vec![
            of("cpu", "CPU", Shape::Steps, cpu),
            of("memory", "memory", Shape::Steps, memory),
        ],
        marks: Vec::new(),
    }
}

/// The fleet over time, one chart below the other.
pub(super) fn fleet(recording: &Recording) -> String {
    let buckets = &recording.fleet;
    let share =
        |it: &Bucket, sums: &Sums, _| sums.short as f64 / (it.lived as f64).max(1.0) * 100.0;
    let short = both("VMs that are short", "% of the VMs, by time", buckets, share);
    let rate = |_: &Bucket, sums: &Sums, span| sums.resizes as f64 / span * 60.0;
    let resizes = both("Resizes", "per minute, all VMs", buckets, rate);
    let [cpu, memory] = sizes("of all VMs", buckets, 240.0);
    [cpu, memory, short, resizes].iter().map(Chart::draw).collect()
}

/// How shortage and slack spread over the VMs: half of them have no more than the one, nearly all no more than the other.
pub(super) fn spreads(report: &FleetReport) -> String {
    let metrics = [
        ("Time with too little", "% of time", "short_share_of_time"),
        ("Slack: what is plugged and not used", "% of size", "slack_share_of_size"),
    ];
    let mut out = String::new();
    for (title, unit, metric) in metrics {
        let mut all: Vec<Bar> = Vec::new();
        for (resource, class) in [("CPU", "cpu"), ("memory", "memory")] {
            let name = format!("{class}_{metric}");
            if let Some(spread) = report.per_vm.get(name.as_str()) {
                all.push((format!("{resource}, median VM"), class, spread.p50 * 100.0));
                all.push((format!("{resource}, 99th percentile"), class, spread.p99 * 100.0));
            }
        }
        out += &bars(title, unit, &all);
    }
    out
}

/// One VM over the whole time.
pub(super) fn vm(record: &VmRecord) -> String {
    let whose = format!("of VM {}", record.vm);
    sizes(&whose, &record.buckets, 180.0).iter().map(Chart::draw).collect()
}

/// Its liveliest minutes, with every change; nothing where there was no change.
pub(super) fn closeup(record: &VmRecord) -> String {
    let window = record.closeup.best();
    let begin = (window.number * WINDOW) as f64 / SECOND;
    let Some(last) = window.points.last() else { return String::new() };
    let end = last.at as f64 / SECOND;
    let points = |value: fn(&Point) -> f64| -> Vec<(f64, f64)> {
        window.points.iter().map(|it| (it.at as f64 / SECOND, value(it))).collect()
    };
    let cpu = vec![
        of("size", "plugged", Shape::Area, points(|it| f64::from(it.cpu) / 1000.0)),
        of("demand", "demanded", Shape::Steps, points(|it| f64::from(it.cpu_wished) / 1000.0)),
    ];
    let memory = vec![
        of("size", "plugged", Shape::Area, points(|it| it.memory as f64 / GIB)),
        of("held", "held", Shape::Line, points(|it| it.held as f64 / GIB)),
        of("demand", "wished for", Shape::Line, points(|it| it.memory_wished as f64 / GIB)),
    ];
    let chart = |what, unit, series| Chart {
        title: format!(
            "{what} of VM {}, from near, {} h after the start",
            record.vm,
            number(begin / 3600.0)
        ),
        unit,
        height: 180.0,
        time: (begin, end),
        series,
        marks: Vec::new(),
    };
    chart("CPU", "vCPU", cpu).draw() + &chart("Memory", "GiB", memory).draw()
}
