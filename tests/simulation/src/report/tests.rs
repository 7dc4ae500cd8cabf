//! The recording against the quality, and the page as a whole.

use guest_units::{Bytes, Moment};

use super::*;
use crate::quality::FleetReport;
use crate::run::{AMPLE, Brain, Fleet, Outcome, machine};
use crate::workload::{Source, parse};

const NODES: usize = 3;
const VMS: usize = 24;

/// Two clusters for an hour and a bit, so that the last bucket is cut short.
fn outcome(record: bool) -> Outcome {
    let groups = parse("all").unwrap();
    let sources: Vec<&Source> = groups.iter().flat_map(|group| &group.sources).collect();
    let sources: Vec<&Source> = sources.into_iter().cycle().take(VMS).collect();
    let end = Moment(std::time::Duration::from_nanos(3_700_000_000_001));
    let fleet = Fleet {
        machine: machine(4, Bytes::from_mib(128)),
        brain: Brain::Headroom,
        nodes: NODES,
        node: AMPLE,
        seed: 3,
        end,
        sleep: true,
        record: record.then(|| Plan::new(end, VMS)),
        checks: false,
    };
    fleet.run(&sources)
}

fn told(record: bool) -> (FleetReport, Option<Recording>) {
    let Outcome { quality, recording, .. } = outcome(record);
    (quality.report(None), recording)
}

#[test]
fn the_buckets_have_what_the_quality_has() {
    let (report, recording) = told(true);
    let recording = recording.unwrap();
    let total = recording.fleet.total();
    let hours = |nanos: u128| nanos as f64 / 3.6e12;
    assert_eq!(hours(total.lived), report.vm_hours);
    assert_eq!(hours(total.cpu.sized) / 1000.0, report.vcpu_hours);
    assert_eq!(hours(total.memory.sized) / f64::from(1 << 30), report.gib_hours);
    for (sums, axis) in [(total.cpu, &report.cpu), (total.memory, &report.memory)] {
        assert_eq!(Some(sums.short as f64 / total.lived as f64), axis.short_share_of_time);
        assert_eq!(sums.resizes, axis.resizes);
        assert!(sums.resizes > 0 && sums.short > 0 && sums.demanded2 > 0);
    }
    assert_eq!(total.kills, report.oom_kills);
    // All VMs of a small fleet are recorded one by one, and together they are the fleet.
    let numbers: Vec<u64> = recording.vms.iter().map(|it| it.vm).collect();
    assert_eq!(numbers, (0..VMS as u64).collect::<Vec<_>>());
    let mut sum = Bucket::default();
    for record in &recording.vms {
        sum.add(&record.buckets.total());
    }
    assert_eq!(sum, total);
    let last = recording.fleet.spans().last().unwrap();
    assert_eq!(last.1, 3_700_000_000_001);
}

#[test]
fn recording_changes_nothing() {
    let (with, recording) = told(true);
    let (without, none) = told(false);
    assert_eq!(with, without);
    assert!(recording.is_some() && none.is_none());
}

#[test]
fn the_page_is_whole_and_the_same_for_the_same_seed() {
    let subject = Subject {
        title: "a <fleet>".to_owned(),
        parameters: vec![("Seed", "3".to_owned())],
        demands: (0..VMS).map(|vm| format!("kind {}", vm % 5)).collect(),
    };
    let draw = || {
        let (report, recording) = told(true);
        (page(&subject, &report, &recording.unwrap()), report)
    };
    let (text, report) = draw();
    assert_eq!(text, draw().0);
    for tag in
        ["svg", "table", "tr", "td", "th", "h1", "h2", "h3", "p", "div", "text", "style", "title"]
    {
        let opened =
            text.matches(&format!("<{tag}>")).count() + text.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, text.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    // Four of the fleet, two of the spread, and three VMs with two charts each of the whole and of a part.
    assert_eq!(text.matches("<svg").count(), 4 + 2 + 3 * 4);
    assert!(text.contains("<h1>a &lt;fleet&gt;</h1>") && text.contains("demand kind "));
    for value in [report.vcpu_hours, report.gib_hours, report.vm_hours] {
        assert!(text.contains(&svg::number(value)), "{value}");
    }
    for unit in ["vCPU-hours", "GiB-hours", "[GiB]", "[vCPU]", "minutes since the start"] {
        assert!(text.contains(unit), "{unit}");
    }
    assert!(!text.contains("NaN") && !text.contains("inf") && !text.contains("<script"));
    assert!(!text.contains("http"), "needs nothing else");
}
