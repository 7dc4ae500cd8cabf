//! The verdict: what must hold for the demonstration to have succeeded, and the figures that are only shown.

use guest_units::Size;

use super::logs::Kind;
use super::recording::{Amount, At, Load, Recording, Stage, VmSample};
use super::{cpu, memory, shown};

/// The books are looked at each second; on a busy machine at least this often, in seconds.
const LEDGER_PACE: f64 = 4.0;

/// Something that must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) passed: bool,
    /// What was seen.
    pub(crate) seen: String,
}

/// A time, with the target where there is one. Absolute times are not judged: the machine may be of any speed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) seconds: Option<f64>,
    pub(crate) target: Option<f64>,
}

impl Figure {
    /// Whether the target was met; nothing where there is no target.
    pub(crate) fn met(&self) -> Option<bool> {
        self.target.map(|target| self.seconds.is_some_and(|seconds| seconds <= target))
    }
}

/// All that must hold.
pub(crate) fn checks(recording: &Recording) -> Vec<Check> {
    let mut all = vec![
        rose(recording, "CPU went up under load", Stage::CpuHeavy, cpu_of, &|v| cpu_text(v)),
        rose(recording, "memory went up under load", Stage::MemoryHeavy, memory_of, &|v| mib(v)),
        fell(recording, "CPU came down after it", cpu_of, &|v| cpu_text(v)),
        fell(recording, "memory came down after it", memory_of, &|v| mib(v)),
        not_restarted(recording),
        session_survived(recording),
        none_failed(recording),
        bounds_kept(recording),
        books_kept(recording),
    ];
    all.push(within_promise(recording));
    all
}

fn check(what: &'static str, result: Result<String, String>) -> Check {
    let passed = result.is_ok();
    Check { what, passed, seen: result.unwrap_or_else(|err| err) }
}

fn cpu_of(size: Size) -> u64 {
    size.cpu.0.into()
}

fn memory_of(size: Size) -> u64 {
    size.memory.0
}

fn cpu_text(milli: u64) -> String {
    cpu(guest_units::MilliCpu(u32::try_from(milli).unwrap_or(u32::MAX)))
}

fn mib(bytes: u64) -> String {
    memory(guest_units::Bytes(bytes))
}

/// What was plugged at a moment: the last that was seen before.
fn plugged_at(recording: &Recording, at: At) -> Option<Size> {
    let before = recording.vm.iter().take_while(|sample| sample.at <= at);
    before.filter_map(|sample| sample.plugged).last()
}

/// The most that was plugged since a moment.
fn peak_since(recording: &Recording, at: At, of: fn(Size) -> u64) -> Option<u64> {
    let since = recording.vm.iter().filter(|sample| sample.at >= at);
    since.filter_map(|sample| sample.plugged).map(of).max()
}

type Text<'a> = &'a dyn Fn(u64) -> String;

fn rose(
    recording: &Recording,
    what: &'static str,
    stage: Stage,
    of: fn(Size) -> u64,
    text: Text<'_>,
) -> Check {
    let look = || -> Result<String, String> {
        let phase = recording.phase(stage).ok_or("the stage was not reached")?;
        let first = recording.origin();
        // The least since the first stage: on a busy machine light load may look heavy, too.
        let calm = recording.vm.iter().filter(|it| it.at >= first && it.at < phase.begun);
        let calm = calm.filter_map(|it| it.plugged).chain(plugged_at(recording, first));
        let start = calm.map(of).min().ok_or("no size was seen")?;
        let peak = peak_since(recording, phase.begun, of).unwrap_or(start);
        let seen = format!("from {} to {}", text(start), text(peak));
        if peak > start { Ok(seen) } else { Err(seen) }
    };
    check(what, look())
}

/// At least half of the rise is given back after the heavy load; when all of it was is one of the figures. The least counts,
/// not the last: on a busy machine even the light load may ask for more now and then.
fn fell(recording: &Recording, what: &'static str, of: fn(Size) -> u64, text: Text<'_>) -> Check {
    let look = || -> Result<String, String> {
        let first = recording.phase(Stage::Light).ok_or("nothing ran")?;
        let start = plugged_at(recording, first.begun).map(of).ok_or("no size was seen")?;
        let peak = peak_since(recording, first.begun, of).unwrap_or(start);
        let ended = heavy_ended(recording).ok_or("no heavy load ended")?;
        let after = recording.vm.iter().filter(|it| it.at >= ended).filter_map(|it| it.plugged);
        let least = after.chain(plugged_at(recording, ended)).map(of).min();
        let least = least.ok_or("no size was seen")?;
        let seen = format!("from {} to {}", text(peak), text(least));
        let half = start + peak.saturating_sub(start) / 2;
        if peak > start && least <= half { Ok(seen) } else { Err(seen) }
    };
    check(what, look())
}

fn not_restarted(recording: &Recording) -> Check {
    let (before, after) = (recording.before.as_ref(), recording.after.as_ref());
    let start = |identity: Option<&super::recording::Identity>| {
        identity.map_or_else(|| "unknown".to_owned(), |it| it.postmaster_start.clone())
    };
    let seen = format!("pg_postmaster_start_time {} and {}", start(before), start(after));
    let same = match (before, after) {
        (Some(before), Some(after)) => before.postmaster_start == after.postmaster_start,
        _ => false,
    };
    let one_pod = |sample: &VmSample| (sample.pod.clone(), sample.restarts);
    let mut pods: Vec<_> = recording.vm.iter().filter(|it| it.pod.is_some()).map(one_pod).collect();
    pods.dedup();
    let result = if same && pods.len() == 1 {
        Ok(seen)
    } else {
        Err(format!("{seen}; pods and restart counts seen: {pods:?}"))
    };
    check("Postgres was not restarted", result)
}

fn session_survived(recording: &Recording) -> Check {
    let pid = |identity: &Option<super::recording::Identity>| {
        identity.as_ref().map(|identity| identity.backend_pid.clone())
    };
    let result = match (pid(&recording.before), pid(&recording.after)) {
        (Some(before), Some(after)) if before == after => {
            Ok(format!("one session, opened before the load and used after it: backend {before}"))
        }
        (before, after) => Err(format!("backend before {before:?}, after {after:?}")),
    };
    check("no connection broke", result)
}

fn none_failed(recording: &Recording) -> Check {
    let look = || -> Result<String, String> {
        for load in Load::ALL {
            if !recording.runs.iter().any(|run| run.load == load) {
                return Err(format!("the {} load never ran", load.name()));
            }
        }
        let mut failed = 0;
        for run in &recording.runs {
            if let Some(trouble) = &run.trouble {
                return Err(trouble.clone());
            }
            failed += run.failed.ok_or("a run of pgbench has no end")?;
        }
        let (runs, transactions) = (recording.runs.len(), recording.transactions.len());
        let seen = format!("{runs} runs of pgbench, {transactions} transactions, {failed} failed");
        if failed == 0 && transactions > 0 { Ok(seen) } else { Err(seen) }
    };
    check("no transaction failed", look())
}

/// From the first answer on, everything anyone ever said the size is or shall be lies between minimum and maximum.
fn bounds_kept(recording: &Recording) -> Check {
    let look = || -> Result<String, String> {
        let from = recording.first_sql.ok_or("Postgres never answered")?;
        let (min, max) = recording.bounds().ok_or("the VM was never seen")?;
        let mut sizes: Vec<(&str, At, Size)> = Vec::new();
        for sample in recording.vm.iter().filter(|sample| sample.at >= from) {
            sizes.push(("spec", sample.at, sample.spec));
            sizes.extend(sample.plugged.map(|size| ("plugged", sample.at, size)));
            sizes.extend(sample.approved.map(|size| ("approved", sample.at, size)));
        }
        for sample in recording.top.iter().filter(|sample| sample.at >= from) {
            let said = [("desired", sample.desired), ("permitted", sample.permit)];
            // Nothing is shown for what is not known yet.
            let known = said.into_iter().filter(|(_, size)| *size != Size::ZERO);
            sizes.extend(known.map(|(what, size)| (what, sample.at, size)));
        }
        let outside = |size: Size| !min.fits_in(size) || !size.fits_in(max);
        if let Some((what, at, size)) = sizes.iter().find(|(_, _, size)| outside(*size)) {
            return Err(format!("{what} was {} at {}", shown(*size), at.rfc3339()));
        }
        let seen = format!("{} sizes between {} and {}", sizes.len(), shown(min), shown(max));
        if recording.top.is_empty() {
            Err("the agent never told its sizes".into())
        } else {
            Ok(seen)
        }
    };
    check("the bounds were never left", look())
}

fn books_kept(recording: &Recording) -> Check {
    let look = || -> Result<String, String> {
        let first = recording.phases.first().ok_or("nothing ran")?;
        let last = recording.phases.last().and_then(|phase| phase.ended).ok_or("nothing ended")?;
        let during = recording.ledger.iter().filter(|it| it.at >= first.begun && it.at <= last);
        let count = during.clone().filter(|sample| sample.vm.is_some()).count();
        if (count as f64) * LEDGER_PACE < last.since(first.begun) {
            return Err(format!("the books were seen only {count} times"));
        }
        let fits = |part: Amount, all: Amount| {
            part.cpu_millis <= all.cpu_millis && part.memory_bytes <= all.memory_bytes
        };
        let mut most = 0.0_f64;
        for sample in &recording.ledger {
            for node in &sample.nodes {
                if !fits(node.reserved, node.allocatable) || !fits(node.promised, node.allocatable)
                {
                    return Err(format!("{} at {}: {node:?}", node.name, sample.at.rfc3339()));
                }
                let share =
                    node.reserved.memory_bytes as f64 / node.allocatable.memory_bytes as f64;
                most = most.max(share);
            }
        }
        Ok(format!(
            "{count} looks into the books; memory taken on a node: at most {:.0} %",
            most * 100.0
        ))
    };
    check("promises never exceeded what the nodes have", look())
}

fn within_promise(recording: &Recording) -> Check {
    let look = || -> Result<String, String> {
        let mut count = 0_usize;
        for sample in &recording.ledger {
            let Some((promise, Some(plugged))) = sample.vm else { continue };
            count += 1;
            if !plugged.fits_in(promise) {
                let (plugged, promise) = (shown(plugged), shown(promise));
                return Err(format!(
                    "{plugged} plugged, {promise} promised at {}",
                    sample.at.rfc3339()
                ));
            }
        }
        if count == 0 { Err("never seen together".into()) } else { Ok(format!("{count} looks")) }
    };
    check("never more was plugged than promised", look())
}

/// The figures.
pub(crate) fn figures(recording: &Recording) -> Vec<Figure> {
    let begun =
        |load: Load| recording.runs.iter().find(|run| run.load == load).map(|run| run.begun);
    let applied = recording.applied.zip(recording.first_sql);
    let cpu = begun(Load::Cpu).and_then(|at| grown_after(recording, at, cpu_of));
    let memory = begun(Load::Memory).and_then(|at| grown_after(recording, at, memory_of));
    let figure = |what, seconds, target| Figure { what, seconds, target };
    vec![
        figure(
            "kubectl apply to the first SQL answer through the Service",
            applied.map(|(a, b)| b.since(a)),
            None,
        ),
        figure("start of the CPU load to more CPU plugged", cpu, Some(3.0)),
        figure(
            "memory pressure (the first ask for more) to more memory plugged",
            pressure(recording),
            Some(1.0),
        ),
        figure("start of the memory load to more memory plugged", memory, None),
        figure("end of the heavy load to the minimum", back(recording), Some(90.0)),
    ]
}

/// Seconds from a moment until the VM object shows more than at that moment.
fn grown_after(recording: &Recording, begun: At, of: fn(Size) -> u64) -> Option<f64> {
    let start = plugged_at(recording, begun).map(of)?;
    let grown = |sample: &&VmSample| sample.plugged.is_some_and(|size| of(size) > start);
    let first = recording.vm.iter().filter(|sample| sample.at >= begun).find(grown)?;
    Some(first.at.since(begun))
}

/// Seconds from the first demand for more memory under the memory load until the hypervisor shows more.
fn pressure(recording: &Recording) -> Option<f64> {
    let begun = recording.phase(Stage::MemoryHeavy)?.begun;
    let start = plugged_at(recording, begun)?.memory;
    let first = |kind: Kind, from: At| {
        let events = recording.events.iter();
        let suits = |event: &&super::logs::Event| {
            event.kind == kind && event.at >= from && event.memory.is_some_and(|it| it > start)
        };
        events.into_iter().find(suits).map(|event| event.at)
    };
    let demanded = first(Kind::Demanded, begun)?;
    Some(first(Kind::PlugDone, demanded)?.since(demanded))
}

/// Seconds from the end of the last heavy load until the VM object shows the minimum.
fn back(recording: &Recording) -> Option<f64> {
    let ended = heavy_ended(recording)?;
    let small = |sample: &&VmSample| {
        sample.at >= ended && sample.plugged == Some(sample.min) && sample.spec == sample.min
    };
    Some(recording.vm.iter().find(small)?.at.since(ended))
}

/// When the last heavy load ended.
fn heavy_ended(recording: &Recording) -> Option<At> {
    let heavy = recording.runs.iter().filter(|run| run.load != Load::Steady);
    heavy.filter_map(|run| run.ended).map(|at| at.0).reduce(f64::max).map(At)
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod tests;
