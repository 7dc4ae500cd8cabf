//! Orders whose end QEMU does not confirm in time.

use super::*;

impl Bench {
    /// QEMU falls silent some time after an order for memory was given; the order ends in time all the same.
    async fn silenced(&self, counter: u64, mib: u64, after: Duration) -> Outcome {
        let started = Instant::now();
        let (outcome, ()) = tokio::join!(self.memory(counter, mib), async {
            sleep(after).await;
            self.qemu(|facts| facts.silent = true);
        });
        assert!(started.elapsed() < ORDER_DEADLINE, "{:?}", started.elapsed());
        outcome
    }

    async fn until_idle(&self) {
        let idle = async {
            while self.busy() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, idle).await.expect("it does not stay busy for ever");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_ends_in_time_when_qemu_falls_silent() {
    let bench = bench(Setup { plugged: 128, ..Setup::default() }).await;
    bench.qemu(|facts| facts.ceiling = 0);
    let outcome = bench.silenced(1, 2048, Duration::from_millis(9300)).await;
    assert_eq!(outcome.result.label(), "unsettled");
    assert_eq!(outcome.plugged.memory, Bytes::from_mib(1152), "the last that is known");
    sleep(ORDER_DEADLINE * 2).await;
    assert!(bench.busy(), "QEMU may still plug");
    bench.qemu(|facts| facts.silent = false);
    bench.until_idle().await;
    assert_eq!(bench.memory_in_the_end().await, Bytes::from_mib(1152), "nothing comes later");
}

#[tokio::test(start_paused = true)]
async fn a_shrink_that_was_cut_off_takes_nothing_more() {
    let bench = bench(Setup { plugged: 1024, ..Setup::default() }).await;
    bench.qemu(|facts| facts.floor = 900 * MIB);
    let outcome = bench.silenced(1, 1024, Duration::from_millis(50)).await;
    assert_eq!(outcome.result.label(), "unsettled");
    assert!(bench.busy());
    bench.qemu(|facts| facts.silent = false);
    bench.until_idle().await;
    let last_known = bench.executor.state.get().plugged.memory;
    assert_eq!(last_known, Bytes::from_mib(1924), "it was looked at before it was idle");
    assert_eq!(bench.memory_in_the_end().await, last_known);
}

#[tokio::test(start_paused = true)]
async fn a_newer_order_takes_over_what_is_unsettled() {
    let bench = bench(Setup { plugged: 128, ..Setup::default() }).await;
    bench.qemu(|facts| facts.ceiling = 0);
    for counter in 1..4 {
        let outcome = bench.silenced(counter, 3072, Duration::from_millis(50)).await;
        assert_eq!(outcome.result.label(), "unsettled", "and it had its turn");
    }
    bench.qemu(|facts| (facts.silent, facts.ceiling) = (false, u64::MAX));
    let outcome = bench.memory(4, 2048).await;
    assert_eq!(outcome.result, OrderResult::Done);
    bench.until_idle().await;
    assert_eq!(bench.memory_in_the_end().await, Bytes::from_mib(2048));
}

#[tokio::test(start_paused = true)]
async fn an_order_is_not_over_before_its_end_was_seen() {
    let bench = bench(Setup::default()).await;
    bench.qemu(|facts| facts.late_look = Some(ORDER_DEADLINE));
    let outcome = bench.memory(1, 2048).await;
    assert_eq!(outcome.result.label(), "unsettled");
    assert!(bench.busy());
    bench.until_idle().await;
    assert_eq!(bench.executor.state.get().plugged.memory, Bytes::from_mib(2048));
}
