//! Orders for CPU, and what a keeper gets when it connects.

use super::*;

/// A guest whose CPUs are switched on and off inside.
fn inside() -> Setup {
    Setup { scaling: CpuScaling::SysfsScaling, start: 3, places: 3, ..Setup::default() }
}

fn has(online: u32, milli: u32) -> GuestCpu {
    GuestCpu { online, quota: MilliCpu(milli) }
}

fn no_answer() -> Result<GuestCpu, GuestError> {
    Err(GuestError::NoAnswer { request: "SetCpu", source: "silence".into() })
}

impl Bench {
    /// The keeper's answers to the next orders for CPU.
    fn cpu_answers(&self, answers: impl IntoIterator<Item = Result<GuestCpu, GuestError>>) {
        self.keeper.cpu.lock().unwrap().extend(answers);
    }
}

#[tokio::test(start_paused = true)]
async fn cpus_come_before_and_go_after_the_guest() {
    let bench = bench(Setup::default()).await;
    let outcome = bench.cpu(1, 2500).await;
    assert_eq!(outcome.result, OrderResult::Done);
    assert_eq!((outcome.plugged.vcpus, outcome.plugged.cpu), (3, MilliCpu(2500)));
    let outcome = bench.cpu(2, 1250).await;
    assert_eq!((outcome.plugged.vcpus, outcome.plugged.cpu), (2, MilliCpu(1250)));
    assert_eq!(
        bench.log.lines(),
        ["add cpu1", "add cpu2", "guest cpu 2500 (1)", "guest cpu 1250 (2)", "remove cpu2"]
    );
    assert_eq!(bench.executor.state.get().cpu_additions_left, Some(61));
}

#[tokio::test(start_paused = true)]
async fn additions_are_never_more_than_the_emulator_survives() {
    let bench = bench(Setup { places: 3, ..Setup::default() }).await;
    assert_eq!(bench.cpu(1, 3000).await.result, OrderResult::Done);
    assert_eq!(bench.cpu(2, 1000).await.result, OrderResult::Done);
    let outcome = bench.cpu(3, 2500).await;
    let OrderResult::Partial { reason } = outcome.result else { panic!("{outcome:?}") };
    assert!(reason.contains("restart"), "{reason}");
    assert_eq!((outcome.plugged.vcpus, outcome.plugged.cpu), (1, MilliCpu(1000)));
    assert_eq!(bench.log.lines().iter().filter(|line| line.starts_with("add")).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cpu_that_the_guest_keeps_is_partial() {
    let bench = bench(Setup::default()).await;
    assert_eq!(bench.cpu(1, 2000).await.result, OrderResult::Done);
    bench.qemu(|facts| facts.keeps_cpus = true);
    let outcome = bench.cpu(2, 1000).await;
    assert_eq!(outcome.result.label(), "partial");
    assert_eq!((outcome.plugged.vcpus, outcome.plugged.cpu), (2, MilliCpu(1000)));
}

#[tokio::test(start_paused = true)]
async fn no_vcpu_is_spent_on_a_guest_that_does_not_answer() {
    let bench = bench(Setup { connected: false, ..Setup::default() }).await;
    let outcome = bench.cpu(1, 2000).await;
    assert_eq!(outcome.result.label(), "failed");
    assert_eq!(outcome.plugged.vcpus, 1);
}

#[tokio::test(start_paused = true)]
async fn cpus_in_the_guest_alone() {
    let bench = bench(inside()).await;
    let before = bench.executor.state.get();
    assert_eq!((before.plugged.vcpus, before.plugged.cpu), (3, MilliCpu(1000)));
    assert_eq!(before.cpu_additions_left, None);
    let outcome = bench.cpu(1, 2500).await;
    assert_eq!(outcome.result, OrderResult::Done);
    assert_eq!((outcome.plugged.vcpus, outcome.plugged.cpu), (3, MilliCpu(2500)));
    assert_eq!(bench.log.lines(), ["guest cpu 2500 (1)"]);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_comes_back_gets_the_newest_cpu() {
    let bench = bench(inside()).await;
    assert_eq!(bench.executor.restore_cpu().await, OrderResult::Done);
    assert_eq!(bench.cpu(7, 2000).await.result, OrderResult::Done);
    assert_eq!(bench.cpu(8, 9000).await.result.label(), "failed", "and forgotten");
    assert_eq!(bench.executor.restore_cpu().await, OrderResult::Done);
    assert_eq!(
        bench.log.lines(),
        ["guest cpu 500 (0)", "guest cpu 2000 (7)", "guest cpu 2000 (7)"]
    );
}

#[tokio::test(start_paused = true)]
async fn cpus_that_are_not_online_are_not_plugged() {
    let bench = bench(Setup::default()).await;
    bench.cpu_answers([Ok(has(1, 3000))]);
    let outcome = bench.cpu(1, 3000).await;
    assert_eq!(outcome.result.label(), "partial");
    assert_eq!((outcome.plugged.vcpus, outcome.plugged.cpu), (3, MilliCpu(1000)));
}

#[tokio::test(start_paused = true)]
async fn a_claim_about_cpu_stays_within_the_bounds() {
    let bench = bench(inside()).await;
    for (counter, claim, believed) in
        [(1, has(1, 0), 250), (2, has(0, 1), 250), (3, has(u32::MAX, u32::MAX), 3000)]
    {
        bench.cpu_answers([Ok(claim)]);
        let outcome = bench.cpu(counter, 500).await;
        assert_eq!(outcome.plugged.cpu, MilliCpu(believed), "{claim:?}");
        assert_eq!(outcome.result.label(), "partial");
    }
}

#[tokio::test(start_paused = true)]
async fn cpu_of_which_nobody_knows_whether_it_was_given_counts() {
    let bench = bench(inside()).await;
    for (counter, to, counts) in [(1, 3000, 3000), (2, 1000, 3000)] {
        bench.cpu_answers([no_answer()]);
        let outcome = bench.cpu(counter, to).await;
        assert_eq!(outcome.plugged.cpu, MilliCpu(counts));
        assert!(!bench.executor.has_cpu(has(2, 2000)));
        assert_eq!(bench.executor.restore_cpu().await, OrderResult::Done, "it is tried again");
        assert_eq!(bench.executor.state.get().plugged.cpu, MilliCpu(to));
        assert!(bench.executor.has_cpu(has(to / 1000, to)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_order_did_not_reach_does_not_come_later() {
    let bench = bench(Setup { boot: MilliCpu(1000), ..inside() }).await;
    bench.cpu_answers([Err(GuestError::NotConnected), Ok(has(2, 3000)), Ok(has(2, 2000))]);
    assert_eq!(bench.cpu(1, 3000).await.result.label(), "failed");
    assert!(bench.executor.has_cpu(has(1, 1000)));
    let outcome = bench.cpu(2, 3000).await;
    assert_eq!((outcome.result.label(), outcome.plugged.cpu), ("partial", MilliCpu(2000)));
    assert_eq!(bench.executor.restore_cpu().await, OrderResult::Done);
    assert_eq!(bench.log.lines().last().unwrap(), "guest cpu 2000 (2)");
}

#[tokio::test(start_paused = true)]
async fn the_cpu_to_boot_with_counts_until_an_order_takes_it_back() {
    let bench = bench(Setup { boot: MilliCpu(2500), ..Setup::default() }).await;
    let plugged = || bench.executor.state.get().plugged;
    assert_eq!((plugged().vcpus, plugged().cpu), (1, MilliCpu(2500)));
    bench.cpu_answers([Err(GuestError::NotConnected)]);
    assert_eq!(bench.executor.restore_cpu().await.label(), "partial", "vCPUs have come");
    assert_eq!((plugged().vcpus, plugged().cpu), (3, MilliCpu(2500)));
    bench.cpu_answers([Err(GuestError::NotConnected)]);
    assert_eq!(bench.cpu(1, 1000).await.result.label(), "partial");
    assert_eq!(plugged().cpu, MilliCpu(1000));
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_first_is_not_made_known_last() {
    let bench = bench(Setup::default()).await;
    assert_eq!(bench.cpu(1, 3000).await.result, OrderResult::Done);
    bench.qemu(|facts| facts.late_look = Some(Duration::from_millis(100)));
    let (first, second) = tokio::join!(bench.executor.observe(), async {
        sleep(Duration::from_millis(10)).await;
        bench.qemu(|facts| facts.cpus[2] = None);
        bench.executor.observe().await
    });
    assert_eq!((first.unwrap().vcpus, second.unwrap().vcpus), (3, 2));
    assert_eq!(bench.executor.state.get().plugged.vcpus, 2);
}
