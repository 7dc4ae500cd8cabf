//! CPU: whole vCPUs by hotplug (or switched on and off in the guest), the fraction as the guest's quota.
//!
//! Up: add vCPUs, then the keeper brings them online and raises the quota. Down: the keeper lowers the quota
//! and takes CPUs offline, then the vCPUs are removed. `device_del` is a request: its end is the event
//! `DEVICE_DELETED`, whose path names the vCPU, or a refusal, or nothing at all, so QEMU is asked as well.
//!
//! What an order did not reach does not come later: the goal that a keeper gets when it connects is never more
//! than what the runner shows as plugged.

use std::time::Duration;

use controller_qmp::{DeviceAdd, DeviceDel, Events, HotpluggableCpu, QueryHotpluggableCpus};
use guest_units::MilliCpu;
use host_protocol::{CpuScaling, Order, OrderResult, RunnerSpec};
use tokio::time::{Instant, timeout};

use super::{Executor, StepError};
use crate::guest::{Guest, GuestError};

/// Removing a vCPU takes 15 to 30 ms; this long is a guest that does not want to.
const REMOVAL_LIMIT: Duration = Duration::from_secs(3);
/// How often QEMU is asked about a removal whose event may be missed.
const REMOVAL_LOOK: Duration = Duration::from_millis(50);

/// Brings CPU to `cpu`.
pub(super) async fn set<G: Guest>(
    executor: &Executor<G>,
    order: Order,
    cpu: MilliCpu,
    until: Instant,
) -> Result<OrderResult, StepError> {
    let spec = &executor.layout.spec;
    if cpu < spec.cpu_min || cpu > spec.cpu_max {
        let reason = format!("{cpu} is not between {} and {}", spec.cpu_min, spec.cpu_max);
        return Ok(OrderResult::Failed { reason });
    }
    let ended = steps(executor, order, cpu, until).await;
    let mut facts = executor.cpu();
    let reached = match &ended {
        Ok(OrderResult::Done) => cpu,
        Ok(_) => facts.quota,
        Err(_) => facts.quota.max(facts.goal.1),
    };
    facts.goal = (order.generation, cpu.min(reached));
    ended
}

async fn steps<G: Guest>(
    executor: &Executor<G>,
    order: Order,
    cpu: MilliCpu,
    until: Instant,
) -> Result<OrderResult, StepError> {
    if executor.layout.spec.cpu_scaling == CpuScaling::SysfsScaling {
        return tell_guest(executor, order, cpu, until).await;
    }
    let want = cpu.whole_up();
    let slots = slots(executor).await?;
    let present = u32::try_from(slots.iter().filter(|slot| slot.qom_path.is_some()).count())
        .unwrap_or(u32::MAX);
    if want <= present {
        let told = tell_guest(executor, order, cpu, until).await?;
        let removed = remove(executor, &slots, present - want, until).await?;
        return Ok(if told == OrderResult::Done { removed } else { told });
    }
    executor.guest.reachable()?; // a vCPU that nobody brings online is an addition wasted
    let missing = add(executor, &slots, want - present).await?;
    let reachable = cpu.min(MilliCpu::from_cpus(want - missing));
    let told = tell_guest(executor, order, reachable, until).await?;
    if missing == 0 || told != OrderResult::Done {
        return Ok(told);
    }
    let reason = format!(
        "{missing} of {want} vCPUs cannot be added: the emulator has used up its additions, or refused; a restart of the VM helps"
    );
    Ok(OrderResult::Partial { reason })
}

/// Lets the keeper set CPUs and quota, and notes what it confirms.
async fn tell_guest<G: Guest>(
    executor: &Executor<G>,
    order: Order,
    cpu: MilliCpu,
    until: Instant,
) -> Result<OrderResult, StepError> {
    let limit = until.saturating_duration_since(Instant::now());
    let told = executor.guest.set_cpu(order.generation, cpu, limit).await;
    let mut facts = executor.cpu();
    let said = told.inspect_err(|err| {
        if !matches!(err, GuestError::NotConnected) {
            facts.quota = facts.quota.max(cpu); // nobody knows whether it was done
        }
    })?;
    // A claim: a CPU that is not online is not used, whatever the quota says.
    let RunnerSpec { cpu_min, cpu_max, .. } = executor.layout.spec;
    facts.quota = said.quota.min(MilliCpu::from_cpus(said.online)).clamp(cpu_min, cpu_max);
    drop(facts);
    if said.quota == cpu && said.online == cpu.whole_up() {
        return Ok(OrderResult::Done);
    }
    let reason = format!("the guest has {} CPUs online and a quota of {}", said.online, said.quota);
    Ok(OrderResult::Partial { reason })
}

/// All places, in the order in which CPUs boot.
async fn slots<G: Guest>(executor: &Executor<G>) -> Result<Vec<HotpluggableCpu>, StepError> {
    let mut slots = executor.command(&QueryHotpluggableCpus {}).await?;
    slots.sort_by_key(HotpluggableCpu::position);
    Ok(slots)
}

/// Adds vCPUs as far as the emulator allows; tells how many are missing.
async fn add<G: Guest>(
    executor: &Executor<G>,
    slots: &[HotpluggableCpu],
    count: u32,
) -> Result<u32, StepError> {
    let free = slots.iter().enumerate().filter(|(_, slot)| slot.qom_path.is_none());
    let mut missing = count;
    for (place, slot) in free {
        if missing == 0 || !take_addition(executor) {
            break;
        }
        let command = DeviceAdd {
            driver: slot.driver.clone(),
            id: format!("cpu{place}"),
            arguments: slot.props.clone(),
        };
        if let Err(err) = executor.command(&command).await {
            if missing == count {
                return Err(err.into());
            }
            tracing::warn!(error = %super::reason(&err), "a vCPU was not added");
            break;
        }
        missing -= 1;
    }
    Ok(missing)
}

/// An attempt counts, too: QEMU may have made the thread before it refused.
fn take_addition<G: Guest>(executor: &Executor<G>) -> bool {
    match &mut executor.cpu().additions_left {
        None => true,
        Some(0) => false,
        Some(left) => {
            *left -= 1;
            true
        }
    }
}

/// Removes vCPUs from the last one down; those that the VM started with stay.
async fn remove<G: Guest>(
    executor: &Executor<G>,
    slots: &[HotpluggableCpu],
    count: u32,
    until: Instant,
) -> Result<OrderResult, StepError> {
    let ids = slots.iter().rev().filter_map(HotpluggableCpu::added_id);
    let ids: Vec<&str> = ids.take(usize::try_from(count).unwrap_or(usize::MAX)).collect();
    let mut left = ids.len();
    for id in &ids {
        let mut events = executor.qmp.events(); // before the command: nothing is missed
        executor.command(&DeviceDel { id: (*id).to_owned() }).await?;
        let limit = (Instant::now() + REMOVAL_LIMIT).min(until);
        if !is_removed(executor, id, &mut events, limit).await? {
            break;
        }
        left -= 1;
    }
    let left = left + usize::try_from(count).unwrap_or(usize::MAX).saturating_sub(ids.len());
    if left == 0 {
        return Ok(OrderResult::Done);
    }
    Ok(OrderResult::Partial { reason: format!("the guest keeps {left} vCPUs") })
}

async fn is_removed<G: Guest>(
    executor: &Executor<G>,
    id: &str,
    events: &mut Events,
    limit: Instant,
) -> Result<bool, StepError> {
    loop {
        match timeout(REMOVAL_LOOK, events.next()).await {
            Ok(Some(event)) if event.deleted().is_some_and(|device| device.is(id)) => {
                return Ok(true);
            }
            Ok(Some(event)) if event.unplug_refused().is_some_and(|device| device.is(id)) => {
                return Ok(false);
            }
            Ok(Some(_)) if Instant::now() < limit => {}
            Ok(_) | Err(_) => {
                let slots = slots(executor).await?;
                if !slots.iter().any(|slot| slot.added_id() == Some(id)) {
                    return Ok(true);
                }
                if Instant::now() >= limit {
                    return Ok(false);
                }
            }
        }
    }
}
