//! The page: what was run, the main numbers, the fleet over time, how numbers spread over the VMs, and some VMs from near.

use std::fmt::Write as _;

use super::charts;
use super::recorder::{Recording, VmRecord};
use super::style::STYLE;
use super::svg::{escape, number};
use crate::quality::{BEYOND, FleetAxisReport, FleetReport};

/// So many VMs are shown one by one.
const SHOWN: usize = 3;

/// What the page is about.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The heading.
    pub title: String,
    /// Names of parameters, and their values with units.
    pub parameters: Vec<(&'static str, String)>,
    /// Whose demand each VM has, by its number in the fleet.
    pub demands: Vec<String>,
}

/// The whole page, as HTML that needs no other file; the same for the same fleet.
#[must_use]
pub fn page(subject: &Subject, report: &FleetReport, recording: &Recording) -> String {
    let title = escape(&subject.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    out += &parameters(subject);
    out += "<h2>Main numbers</h2>\n";
    out += &totals(report);
    out += &resources(report);
    out += "<h2>The fleet over time</h2>\n";
    out += &charts::fleet(recording);
    out += &note(&format!(
        "Each step is the mean over {}. Plugged memory includes what the guests' kernels take; what workloads hold and wish \
         for does not. A VM is short while its workload demands more than it has; all begin at their minimum. The taller a mark, the more OOM \
         kills; pointing at one tells how many.",
        bucket(recording)
    ));
    out += "<h2>From VM to VM</h2>\n";
    out += &charts::spreads(report);
    out += &note(
        "Half of the VMs have no more than the median VM, 99 % no more than the 99th percentile.",
    );
    out += "<h2>Some VMs</h2>\n";
    out += &note(&format!(
        "Of {} VMs that were recorded one by one, those with the most resizes, of different demands where there are. Below the \
         whole time, each step a mean, the quarter of an hour with the most resizes shows every change.",
        recording.vms.len()
    ));
    for record in shown(recording, &subject.demands) {
        out += &vm(record, &subject.demands);
    }
    out + "</main>\n</body>\n</html>\n"
}

fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", escape(text))
}

fn bucket(recording: &Recording) -> String {
    let nanos = recording.fleet.spans().next().map_or(0, |(from, to, _)| to - from);
    match nanos as f64 / 1e9 {
        seconds @ ..120.0 => format!("{} s", number(seconds)),
        seconds => format!("{} min", number(seconds / 60.0)),
    }
}

fn parameters(subject: &Subject) -> String {
    let mut out = "<div class=\"wide\"><table>\n".to_owned();
    for (name, value) in &subject.parameters {
        let (name, value) = (escape(name), escape(value));
        let _infallible = writeln!(out, "<tr><th>{name}</th><td><code>{value}</code></td></tr>");
    }
    out + "</table></div>\n"
}

/// A value of a table, with its unit.
fn told(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(
        || "–".to_owned(),
        |value| format!("{} {unit}", number(value)).trim_end().to_owned(),
    )
}

fn percent(share: Option<f64>) -> String {
    told(share.map(|share| share * 100.0), "%")
}

fn row(out: &mut String, name: &str, values: &[String]) {
    let cells: String =
        values.iter().map(|it| format!("<td class=\"value\">{}</td>", escape(it))).collect();
    let _infallible = writeln!(out, "<tr><td>{}</td>{cells}</tr>", escape(name));
}

fn totals(report: &FleetReport) -> String {
    let mut out = "<div class=\"wide\"><table>\n".to_owned();
    let per = |hours: f64| hours / report.vm_hours.max(f64::MIN_POSITIVE);
    let usage = |hours: f64, unit: &str, of: &str| {
        vec![told(Some(hours), unit), format!("{} {of} on average", number(per(hours)))]
    };
    row(&mut out, "VMs", &[report.vms.to_string(), told(Some(report.vm_hours), "VM-hours")]);
    row(&mut out, "Plugged CPU", &usage(report.vcpu_hours, "vCPU-hours", "vCPU a VM"));
    row(&mut out, "Plugged memory", &usage(report.gib_hours, "GiB-hours", "GiB a VM"));
    let units = usage(report.cu_hours, "CU-hours", "CU a VM");
    row(&mut out, "Compute units (0.25 vCPU and 1 GiB)", &units);
    let rate = report.oom_kills_per_million_vm_hours;
    let rate = rate.map_or_else(
        || "too few for a rate".to_owned(),
        |rate| told(Some(rate), "per million VM-hours"),
    );
    row(&mut out, "OOM kills", &[report.oom_kills.to_string(), rate]);
    let in_place = format!("{} with room at once", percent(report.in_place_share_of_scale_ups));
    row(&mut out, "Scale-ups", &[report.scale_ups_wanted.to_string(), in_place]);
    let at_once =
        format!("{} without waiting for kubelet", percent(report.at_once_share_of_growths));
    let resizes = told(report.pod_resizes_per_vm_hour, "pod resizes a VM-hour");
    row(&mut out, "Growths permitted", &[at_once, resizes]);
    out + "</table></div>\n"
}

fn resources(report: &FleetReport) -> String {
    let mut out =
        "<div class=\"wide\"><table>\n<tr><th>All VMs together</th><th class=\"value\">CPU</th>\
                   <th class=\"value\">Memory</th></tr>\n"
            .to_owned();
    let mut both = |name: &str, value: &dyn Fn(&FleetAxisReport) -> String| {
        row(&mut out, name, &[value(&report.cpu), value(&report.memory)]);
    };
    let seconds = |millis: Option<u64>| match crate::quality::is_beyond(millis) {
        true => BEYOND.to_owned(),
        false => told(millis.map(|millis| millis as f64 / 1000.0), "s"),
    };
    both("Time with too little", &|it| percent(it.short_share_of_time));
    both("What was missing then, of the demand", &|it| percent(it.short_depth_share_of_demand));
    both("Slack: not used, of the size", &|it| percent(it.slack_share_of_size));
    both("Time until there was enough, median", &|it| {
        seconds(it.time_to_adequate_p50_milliseconds)
    });
    both("Time until there was enough, 99th percentile", &|it| {
        seconds(it.time_to_adequate_p99_milliseconds)
    });
    both("Demands that fell before there was enough", &|it| it.never_adequate.to_string());
    both("Resizes", &|it| it.resizes.to_string());
    let hours = report.vm_hours.max(f64::MIN_POSITIVE);
    both("Resizes per VM-hour", &|it| number(it.resizes as f64 / hours));
    both("Reversals: against the one before, within 5 min", &|it| it.reversals.to_string());
    out + "</table></div>\n"
}

fn resizes(record: &VmRecord) -> u64 {
    let total = record.buckets.total();
    total.cpu.resizes + total.memory.resizes
}

fn demand(demands: &[String], record: &VmRecord) -> String {
    let index = usize::try_from(record.vm).unwrap_or(usize::MAX);
    demands.get(index).cloned().unwrap_or_default()
}

/// The VMs with the most resizes, first one of each demand.
fn shown<'a>(recording: &'a Recording, demands: &[String]) -> Vec<&'a VmRecord> {
    let mut all: Vec<&VmRecord> = recording.vms.iter().collect();
    all.sort_by_key(|record| (std::cmp::Reverse(resizes(record)), record.vm));
    let mut seen = std::collections::BTreeSet::new();
    let (mut first, more): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|record| seen.insert(demand(demands, record)));
    first.extend(more);
    first.truncate(SHOWN);
    first
}

fn vm(record: &VmRecord, demands: &[String]) -> String {
    let total = record.buckets.total();
    let text = format!(
        "{} resizes of CPU, {} of memory, {} OOM kills.",
        total.cpu.resizes, total.memory.resizes, total.kills
    );
    let name = escape(&demand(demands, record));
    let heading = format!("<h3>VM {}: demand {name}</h3>\n", record.vm);
    heading + &note(&text) + &charts::vm(record) + &charts::closeup(record)
}
