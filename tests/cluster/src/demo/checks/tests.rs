//! Every check is seen to pass on a good recording and to fail on one that is spoilt for it alone.

use super::super::recording::Identity;
use super::sample::{BEGUN, good, size};
use super::*;

/// The checks that fail once the recording was spoilt.
fn failing(spoil: impl FnOnce(&mut Recording)) -> Vec<&'static str> {
    let mut recording = good();
    spoil(&mut recording);
    checks(&recording).into_iter().filter(|check| !check.passed).map(|check| check.what).collect()
}

#[test]
fn a_good_recording_passes() {
    assert_eq!(failing(|_| {}), [""; 0]);
}

#[test]
fn nothing_at_all_passes_nothing() {
    let all = checks(&Recording::default());
    assert_eq!(all.len(), 10);
    assert!(all.iter().all(|check| !check.passed), "{all:?}");
}

#[test]
fn a_resource_that_does_not_move_is_found() {
    let flat_cpu = failing(|it| {
        for sample in &mut it.vm {
            sample.plugged.as_mut().unwrap().cpu.0 = 250;
        }
    });
    assert_eq!(flat_cpu, ["CPU went up under load", "CPU came down after it"]);
    let flat_memory = failing(|it| {
        for sample in &mut it.vm {
            sample.plugged.as_mut().unwrap().memory = size(0, 512).memory;
        }
    });
    assert_eq!(flat_memory, ["memory went up under load", "memory came down after it"]);
}

/// Changes what is plugged in all samples after the heavy load.
fn afterwards(it: &mut Recording, change: fn(&mut Size)) {
    let late = it.vm.iter_mut().filter(|sample| sample.at.0 > BEGUN + 101.0);
    late.filter_map(|sample| sample.plugged.as_mut()).for_each(change);
}

#[test]
fn a_resource_that_stays_up_is_found() {
    let high_cpu = failing(|it| {
        let before = it.vm.iter_mut().filter(|sample| sample.at.0 <= BEGUN + 101.0).skip(1);
        before.filter_map(|sample| sample.plugged.as_mut()).for_each(|it| it.cpu.0 = 1500);
        afterwards(it, |it| it.cpu.0 = 1250);
    });
    assert_eq!(high_cpu, ["CPU came down after it"]);
    let memory = failing(|all| afterwards(all, |it| it.memory = size(0, 1152).memory));
    assert_eq!(memory, ["memory came down after it"]);
    let no_end = failing(|it| it.runs.iter_mut().for_each(|run| run.ended = None));
    assert_eq!(no_end, ["CPU came down after it", "memory came down after it"]);
}

#[test]
fn a_late_rise_does_not_undo_that_it_came_down() {
    assert_eq!(failing(|it| it.vm.last_mut().unwrap().plugged = Some(size(1250, 512))), [""; 0]);
}

#[test]
fn a_restart_is_found_in_both_ways() {
    let later = |it: &mut Recording| it.after.as_mut().unwrap().postmaster_start.push('9');
    assert_eq!(failing(later), ["Postgres was not restarted"]);
    let other_pod = |it: &mut Recording| it.vm[5].pod = Some("demo-other".to_owned());
    assert_eq!(failing(other_pod), ["Postgres was not restarted"]);
    let counted = |it: &mut Recording| it.vm.last_mut().unwrap().restarts = 1;
    assert_eq!(failing(counted), ["Postgres was not restarted"]);
}

#[test]
fn a_broken_session_is_found() {
    let other = |it: &mut Recording| it.after.as_mut().unwrap().backend_pid = "118".to_owned();
    assert_eq!(failing(other), ["no connection broke"]);
    let none = failing(|it| it.after = None::<Identity>);
    assert_eq!(none, ["Postgres was not restarted", "no connection broke"]);
}

#[test]
fn failed_transactions_and_broken_runs_are_found() {
    let what = ["no transaction failed"];
    assert_eq!(failing(|it| it.runs[0].failed = Some(1)), what);
    assert_eq!(failing(|it| it.runs[1].failed = None), what);
    assert_eq!(failing(|it| it.runs[1].trouble = Some("client 1 aborted".to_owned())), what);
    assert_eq!(failing(|it| it.runs.retain(|run| run.load != Load::Memory)), what);
    assert_eq!(failing(|it| it.transactions.clear()), what);
}

#[test]
fn a_size_out_of_bounds_is_found_wherever_it_shows() {
    let what = ["the bounds were never left"];
    assert_eq!(failing(|it| it.vm[3].spec = size(1750, 512)), what);
    assert_eq!(failing(|it| it.vm[3].approved = Some(size(250, 2688))), what);
    assert_eq!(failing(|it| it.top[100].desired = size(125, 512)), what);
    assert_eq!(failing(|it| it.top[100].permit = size(250, 384)), what);
    assert_eq!(failing(|it| it.top.clear()), what);
    // Before Postgres answered for the first time the sizes are still being made.
    assert_eq!(failing(|it| it.vm[0].plugged = Some(size(250, 512))), [""; 0]);
}

#[test]
fn an_overcommitted_node_is_found() {
    let what = ["promises never exceeded what the nodes have"];
    assert_eq!(failing(|it| it.ledger[9].nodes[0].reserved.memory_bytes = 7000 << 20), what);
    assert_eq!(failing(|it| it.ledger[9].nodes[0].promised.cpu_millis = 2001), what);
    assert_eq!(failing(|it| it.ledger.truncate(40)), what);
}

#[test]
fn more_plugged_than_promised_is_found() {
    let spoil = |it: &mut Recording| it.ledger[9].vm = Some((size(250, 512), Some(size(250, 640))));
    assert_eq!(failing(spoil), ["never more was plugged than promised"]);
}

#[test]
fn figures_are_measured_and_compared() {
    let seen: Vec<Option<f64>> = figures(&good())
        .into_iter()
        .map(|figure| figure.seconds.map(|seconds| (seconds * 100.0).round() / 100.0))
        .collect();
    assert_eq!(seen, [Some(12.0), Some(1.2), Some(0.13), Some(0.93), Some(38.0)]);
    let met: Vec<Option<bool>> = figures(&good()).iter().map(Figure::met).collect();
    assert_eq!(met, [None, Some(true), Some(true), None, Some(true)]);
    let unseen = figures(&Recording::default());
    assert!(unseen.iter().all(|figure| figure.seconds.is_none() && figure.met() != Some(true)));
}

#[test]
fn being_back_counts_only_after_the_load() {
    let mut recording = good();
    recording.vm.pop();
    assert_eq!(figures(&recording)[4].seconds, None);
    let late = super::super::recording::At(BEGUN + 101.0 + 95.0);
    recording.vm.push(VmSample { at: late, ..good().vm[0].clone() });
    assert_eq!(figures(&recording)[4].met(), Some(false));
}
