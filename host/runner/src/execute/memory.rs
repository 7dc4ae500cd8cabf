//! Memory: virtio-mem's `requested-size` is what is wanted, `size` what is there.
//!
//! QEMU's event about the size comes at most once a second, so `size` is read every few milliseconds while
//! a resize is in flight. A guest driver that found no free block waits for most of a minute; writing
//! `requested-size` again, with the same value, wakes it.
//!
//! As long as the two differ, memory may still come or go. So an order is over when [`hold`] has made them equal,
//! however its steps ended.

use std::time::Duration;

use controller_qmp::QomSet;
use guest_units::Bytes;
use host_protocol::{Order, OrderResult};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Executor, StepError};
use crate::cmdline::MEMORY_DEVICE;
use crate::guest::{Consent, Guest};

/// virtio-mem plugs blocks of this size.
const BLOCK: Bytes = Bytes::from_mib(2);
/// A shrink goes in steps, and the guest is asked again before each.
const STEP: Bytes = Bytes::from_mib(256);
/// How often `size` is read at first, and later.
const LOOK_FAST: Duration = Duration::from_millis(5);
const LOOK_SLOW: Duration = Duration::from_millis(20);
const FAST_FOR: Duration = Duration::from_millis(500);
/// Without progress the driver is woken this often.
const KICK: Duration = Duration::from_millis(500);
/// A shrink without progress for this long is accepted as it is.
const STUCK: Duration = Duration::from_secs(3);
/// The guest answers a question within this time, or its answer is of no use.
const CONSENT_LIMIT: Duration = Duration::from_secs(2);

/// Where waiting for a size ended.
enum Settled {
    Reached,
    /// No progress, or no time left.
    Stuck(Bytes),
    /// A newer order came.
    Overtaken,
}

/// Brings memory to `total`, base included.
pub(super) async fn set<G: Guest>(
    executor: &Executor<G>,
    order: Order,
    total: Bytes,
    until: Instant,
) -> Result<OrderResult, StepError> {
    let spec = &executor.layout.spec;
    if total < spec.memory_min || total > spec.memory_max {
        let reason = format!("{total} is not between {} and {}", spec.memory_min, spec.memory_max);
        return Ok(OrderResult::Failed { reason });
    }
    if !executor.has_memory_device() {
        return Ok(OrderResult::Done);
    }
    let resize = Resize { executor, order, base: spec.memory_min, until };
    let want = total.saturating_sub(spec.memory_min).round_down(BLOCK);
    // What an earlier order has left pending ends here: this one takes over, and asks for itself.
    let size = hold(executor).await?;
    if want >= size {
        return resize.grow(want).await;
    }
    // From here on something is taken that the guest has: never without its consent.
    if let Some(veto) = resize.ask(size, want).await? {
        return Ok(veto);
    }
    resize.shrink(size, want).await
}

/// Brings what is requested to what is there: then nothing comes and nothing goes any more. Needs no question, as what
/// the guest plugs meanwhile it keeps. Returns the size.
pub(super) async fn hold<G: Guest>(executor: &Executor<G>) -> Result<Bytes, StepError> {
    if !executor.has_memory_device() {
        return Ok(Bytes(0));
    }
    loop {
        let size = executor.memory_property("size").await?;
        if executor.memory_property("requested-size").await? == size {
            return Ok(size);
        }
        request(executor, size).await?;
    }
}

async fn request<G: Guest>(executor: &Executor<G>, size: Bytes) -> Result<(), StepError> {
    let command = QomSet {
        path: format!("/machine/peripheral/{MEMORY_DEVICE}"),
        property: "requested-size".to_owned(),
        value: json!(size.0),
    };
    executor.command(&command).await?;
    Ok(())
}

struct Resize<'a, G> {
    executor: &'a Executor<G>,
    order: Order,
    base: Bytes,
    until: Instant,
}

impl<G: Guest> Resize<'_, G> {
    async fn grow(&self, want: Bytes) -> Result<OrderResult, StepError> {
        request(self.executor, want).await?;
        Ok(match self.settle(want, None).await? {
            Settled::Reached => OrderResult::Done,
            Settled::Stuck(size) => partial(format!(
                "the guest has plugged {} of {} in time",
                self.base.saturating_add(size),
                self.base.saturating_add(want),
            )),
            Settled::Overtaken => partial("a newer order came".to_owned()),
        })
    }

    /// Steps down from `size`; the guest has just agreed to `want`.
    async fn shrink(&self, size: Bytes, want: Bytes) -> Result<OrderResult, StepError> {
        let mut size = size;
        let mut asked = true;
        while size > want {
            let next = size.saturating_sub(STEP).max(want);
            if !asked && let Some(veto) = self.ask(size, next).await? {
                return Ok(veto);
            }
            asked = false;
            request(self.executor, next).await?;
            match self.settle(next, Some(STUCK)).await? {
                Settled::Reached => size = next,
                Settled::Stuck(reached) => {
                    return Ok(partial(format!(
                        "the guest could not free more than down to {}",
                        self.base.saturating_add(reached)
                    )));
                }
                Settled::Overtaken => return Ok(partial("a newer order came".to_owned())),
            }
        }
        Ok(OrderResult::Done)
    }

    /// Asks the guest; its veto ends the order.
    async fn ask(&self, from: Bytes, to: Bytes) -> Result<Option<OrderResult>, StepError> {
        let total = |plugged| self.base.saturating_add(plugged);
        let guest = &self.executor.guest;
        let limit = CONSENT_LIMIT.min(self.until.saturating_duration_since(Instant::now()));
        let asked =
            guest.may_shrink_memory(self.order.generation, total(from), total(to), limit).await?;
        Ok(match asked {
            Consent::Fine => None,
            Consent::Veto { least, reason } => {
                // A claim: it can be no more than what the guest has.
                Some(OrderResult::Vetoed { least: least.clamp(total(to), total(from)), reason })
            }
        })
    }

    /// Waits until `size` is there, at most until the order's time is over, and for a shrink at most
    /// `stuck` without progress.
    async fn settle(&self, want: Bytes, stuck: Option<Duration>) -> Result<Settled, StepError> {
        let started = Instant::now();
        let (mut moved, mut kicked) = (started, started);
        let mut last = None;
        loop {
            let size = self.executor.memory_property("size").await?;
            if size == want {
                return Ok(Settled::Reached);
            }
            let now = Instant::now();
            if last.replace(size) != Some(size) {
                moved = now;
            }
            if self.executor.gate.newer_than(self.order).is_some() {
                return Ok(Settled::Overtaken);
            }
            if now >= self.until || stuck.is_some_and(|limit| now - moved >= limit) {
                return Ok(Settled::Stuck(size));
            }
            if now - moved.max(kicked) >= KICK {
                request(self.executor, want).await?;
                kicked = now;
            }
            sleep(if now - started < FAST_FOR { LOOK_FAST } else { LOOK_SLOW }).await;
        }
    }
}

fn partial(reason: String) -> OrderResult {
    OrderResult::Partial { reason }
}
