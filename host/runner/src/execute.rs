//! Carries orders out: a typed order in, steps at QEMU and in the guest, an outcome.
//!
//! ```text
//! order -> gate: stale? -> lane of its resource (one at a time) -> steps -> look at QEMU -> outcome
//!                                     ^ a newer order makes the running one stop at its next look
//! ```
//!
//! - **The one choke point:** QEMU's `requested-size` is never lowered below what the guest has without its
//!   consent given immediately before; virtio-mem does not refuse, the guest's OOM killer would answer.
//! - What is plugged is what QEMU shows after the steps, never what was asked.
//! - Every order is answered within [`ORDER_DEADLINE`].
//! - An order is over when QEMU has confirmed that nothing of it is pending. One that is not over by its deadline is
//!   answered as unsettled, and the runner stays busy until [`Executor::settle`] has brought it to its end. A newer
//!   order does not wait for that: it settles what it finds itself.

mod cpu;
mod gate;
mod memory;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controller_qmp::{Client, Command, QmpError, QomGet, QueryCpus, SystemPowerdown};
use guest_units::{Bytes, MilliCpu};
use host_protocol::{
    CpuScaling, Generation, ORDER_DEADLINE, Order, OrderResult, Outcome, Plugged, Resource,
    RunnerSpec, RunnerState, VmState, What,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use self::gate::Gate;
use crate::cmdline::{Accel, Cpus, MEMORY_DEVICE};
use crate::guest::{Guest, GuestCpu, GuestError};
use crate::metrics::{Metrics, OrderLabels};
use crate::state::{Running, State};

/// Steps end this long before the order's deadline, so that the answer still arrives in time.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// Of this time, the last command of a step may take so long, and the end of what is pending until here.
const LAST_STEP: Duration = Duration::from_millis(200);
const LAST_LOOK: Duration = Duration::from_millis(400);
/// One command of QEMU's monitor takes a few milliseconds.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries to settle what an order has left.
const SETTLE_AGAIN: Duration = Duration::from_millis(200);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error("talk to QEMU")]
    Qmp {
        #[from]
        source: QmpError,
    },
    #[error(transparent)]
    Guest {
        #[from]
        source: GuestError,
    },
    #[error("QEMU's {property} is not a number of bytes")]
    NotBytes { property: &'static str },
    #[error("QEMU does not answer in time")]
    Late,
}

/// What does not change while the VM runs.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) spec: RunnerSpec,
    pub(crate) accel: Accel,
    pub(crate) cpus: Cpus,
}

/// What is known about the VM's CPUs.
#[derive(Debug, Clone, Copy)]
struct CpuFacts {
    /// The most that the guest may use: what the keeper confirmed last, and what it may have done since.
    quota: MilliCpu,
    /// What a keeper gets when it connects: at first the CPU to boot with, then what the newest order reached.
    goal: (Generation, MilliCpu),
    /// Under emulation QEMU aborts when more vCPUs were ever created than it has places.
    additions_left: Option<u32>,
}

/// Carries orders out, one per resource at a time.
pub(crate) struct Executor<G> {
    layout: Layout,
    qmp: Client,
    guest: G,
    state: State,
    metrics: Metrics,
    gate: Gate,
    cpu_turn: tokio::sync::Mutex<()>,
    memory_turn: tokio::sync::Mutex<()>,
    look: tokio::sync::Mutex<()>,
    cpu: Mutex<CpuFacts>,
    /// The last unsettled order: the runner is busy until nothing is.
    unsettled: Mutex<Option<Running>>,
    settle_now: Notify,
}

/// The additions of vCPUs that a VM has from its start; nothing where they are not limited.
pub(crate) fn cpu_additions(layout: &Layout) -> Option<u32> {
    (layout.accel == Accel::Tcg && layout.spec.cpu_scaling == CpuScaling::QmpScaling)
        .then(|| layout.cpus.places.saturating_sub(layout.cpus.start))
}

impl<G: Guest> Executor<G> {
    pub(crate) fn new(
        layout: Layout,
        qmp: Client,
        guest: G,
        state: State,
        metrics: Metrics,
    ) -> Self {
        let facts = CpuFacts {
            // With no keeper the guest's kernel has as many CPUs online as it was started with.
            quota: MilliCpu::from_cpus(layout.spec.cpu_min.whole_up()),
            goal: (Generation::default(), layout.spec.cpu_boot),
            additions_left: cpu_additions(&layout),
        };
        Self {
            layout,
            qmp,
            guest,
            state,
            metrics,
            gate: Gate::default(),
            cpu_turn: tokio::sync::Mutex::default(),
            memory_turn: tokio::sync::Mutex::default(),
            look: tokio::sync::Mutex::default(),
            cpu: Mutex::new(facts),
            unsettled: Mutex::default(),
            settle_now: Notify::new(),
        }
    }

    /// Carries an order out, or says why not.
    pub(crate) async fn perform(&self, order: Order) -> Outcome {
        let started = Instant::now();
        let until = started + ORDER_DEADLINE.saturating_sub(ANSWER_TIME);
        // Before the gate: whoever fences it and then sees nobody busy knows that no older order runs.
        let running = self.state.busy();
        let result = match self.gate.admit(order) {
            Ok(()) => {
                self.state.change(|state| state.newest = state.newest.max(order.generation));
                self.in_turn(order, until).await
            }
            Err(newest) => OrderResult::Stale { newest },
        };
        if matches!(result, OrderResult::Unsettled { .. }) {
            *self.unsettled() = Some(running); // one guard is enough for all
            self.settle_now.notify_one();
        } else {
            drop(running);
        }
        self.metrics.order(
            OrderLabels { resource: label(order.what.resource()), result: result.label() },
            started.elapsed(),
        );
        let RunnerState { revision, plugged, .. } = self.state.get();
        Outcome { revision, plugged, result }
    }

    /// Refuses every order before `first` from now on, and shows that it does.
    pub(crate) fn fence(&self, first: Generation) {
        self.gate.fence(first);
        self.state.change(|state| state.newest = state.newest.max(first));
    }

    /// Brings to an end what orders have left unsettled, as soon as QEMU answers again. Never ends by itself.
    pub(crate) async fn settle(&self) -> Infallible {
        loop {
            self.settle_now.notified().await;
            let Some(running) = self.unsettled().take() else { continue };
            while let Err(err) = self.settled().await {
                tracing::debug!(error = %reason(&err), "an order is still not over");
                sleep(SETTLE_AGAIN).await; // without a turn: a newer order goes first
            }
            tracing::info!("nothing is unsettled any more");
            drop(running);
        }
    }

    async fn settled(&self) -> Result<Plugged, StepError> {
        let _turn = self.memory_turn.lock().await;
        memory::hold(self).await?;
        self.observe().await
    }

    /// Gives the guest the CPU that it should have: a keeper that connects may be a new one that knows of no
    /// quota.
    pub(crate) async fn restore_cpu(&self) -> OrderResult {
        let _turn = self.cpu_turn.lock().await;
        let (generation, cpu) = self.cpu().goal;
        let order = Order { generation, what: What::SetCpu(cpu) };
        let until = Instant::now() + ORDER_DEADLINE;
        self.logged(order, until).await
    }

    /// Whether the guest has the CPU that it should have. While an order sees to it, it has.
    pub(crate) fn has_cpu(&self, said: GuestCpu) -> bool {
        let (_, cpu) = self.cpu().goal;
        let running = self.cpu_turn.try_lock().is_err();
        running || said == GuestCpu { online: cpu.whole_up(), quota: cpu }
    }

    /// Presses the power button, and tells the keeper if it listens. Either is enough for the guest.
    pub(crate) async fn power_down(&self) -> OrderResult {
        self.state.change(|state| state.vm = VmState::Stopping);
        let (pressed, told) =
            tokio::join!(self.command(&SystemPowerdown {}), self.guest.power_down(COMMAND_LIMIT),);
        match (pressed, told) {
            (Err(err), Err(_)) => OrderResult::Failed { reason: reason(&err) },
            _ => OrderResult::Done,
        }
    }

    /// Looks at QEMU and makes what it shows known.
    pub(crate) async fn observe(&self) -> Result<Plugged, StepError> {
        let _turn = self.look.lock().await; // what was seen first must not be made known last
        let cpus = self.command(&QueryCpus {}).await?;
        let vcpus = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
        let memory = self.layout.spec.memory_min.saturating_add(self.memory_plugged().await?);
        let CpuFacts { quota, goal: (_, goal), additions_left } = *self.cpu();
        // While the VM boots the goal is still to come, without any further order.
        let cpu = MilliCpu::from_cpus(vcpus).min(quota).max(goal);
        let plugged = Plugged { vcpus, cpu, memory };
        self.state.change(|state| {
            state.plugged = plugged;
            state.cpu_additions_left = additions_left;
        });
        Ok(plugged)
    }

    async fn in_turn(&self, order: Order, until: Instant) -> OrderResult {
        let lane = match order.what.resource() {
            Resource::Cpu => &self.cpu_turn,
            Resource::Memory => &self.memory_turn,
            Resource::Power => return self.power_down().await,
        };
        let Ok(_turn) = timeout_at(until, lane.lock()).await else {
            return OrderResult::Failed { reason: "an earlier order still runs".to_owned() };
        };
        if let Some(newest) = self.gate.newer_than(order) {
            return OrderResult::Stale { newest };
        }
        self.logged(order, until).await
    }

    /// The steps, between the two lines that the time line of a VM is built from.
    async fn logged(&self, order: Order, until: Instant) -> OrderResult {
        let started = Instant::now();
        let RunnerSpec { name: vm, namespace, .. } = &self.layout.spec;
        let Generation { epoch, counter } = order.generation;
        let before = self.state.get().plugged;
        let (resource, to) = (label(order.what.resource()), target(order.what));
        let from = shown(order.what, before);
        tracing::info!(
            vm,
            namespace,
            epoch,
            generation = counter,
            resource,
            from,
            to,
            "plug started"
        );
        let (ended, left) = self.in_time(order, until).await;
        let after = left.as_ref().map_or_else(|_| self.state.get().plugged, |plugged| *plugged);
        let result = match (ended, left) {
            (Err(err), Err(_)) | (Ok(_), Err(err)) => {
                OrderResult::Unsettled { reason: reason(&err) }
            }
            (Ok(result), Ok(_)) => result,
            (Err(err), Ok(_)) if after == before => OrderResult::Failed { reason: reason(&err) },
            (Err(err), Ok(_)) => OrderResult::Partial { reason: reason(&err) },
        };
        if let OrderResult::Unsettled { reason } = &result {
            tracing::warn!(vm, namespace, reason, "its end is not confirmed");
        }
        tracing::info!(
            vm,
            namespace,
            epoch,
            generation = counter,
            resource,
            from,
            to,
            reached = shown(order.what, after),
            result = result.label(),
            ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "plug done"
        );
        result
    }

    /// How the steps ended, and what they have left, once nothing of it is pending. A QEMU that does not answer takes no
    /// more time than there is.
    async fn in_time(
        &self,
        order: Order,
        until: Instant,
    ) -> (Result<OrderResult, StepError>, Result<Plugged, StepError>) {
        let steps = async {
            match order.what {
                What::SetCpu(cpu) => cpu::set(self, order, cpu, until).await,
                What::SetMemory(total) => memory::set(self, order, total, until).await,
                What::PowerDown => Ok(self.power_down().await),
            }
        };
        let ended = timeout_at(until + LAST_STEP, steps).await.unwrap_or(Err(StepError::Late));
        let ending = async {
            if order.what.resource() == Resource::Memory {
                memory::hold(self).await?;
            }
            self.observe().await
        };
        let left = timeout_at(until + LAST_LOOK, ending).await.unwrap_or(Err(StepError::Late));
        (ended, left)
    }

    async fn command<C: Command>(&self, command: &C) -> Result<C::Answer, QmpError> {
        self.qmp.execute(command, COMMAND_LIMIT).await
    }

    /// What virtio-mem has plugged: QEMU's own account, the only truth.
    async fn memory_plugged(&self) -> Result<Bytes, StepError> {
        if !self.has_memory_device() {
            return Ok(Bytes(0));
        }
        self.memory_property("size").await
    }

    fn has_memory_device(&self) -> bool {
        self.layout.spec.memory_max > self.layout.spec.memory_min
    }

    async fn memory_property(&self, property: &'static str) -> Result<Bytes, StepError> {
        let path = format!("/machine/peripheral/{MEMORY_DEVICE}");
        let value = self.command(&QomGet { path, property: property.to_owned() }).await?;
        value.as_u64().map(Bytes).ok_or(StepError::NotBytes { property })
    }

    fn cpu(&self) -> MutexGuard<'_, CpuFacts> {
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsettled(&self) -> MutexGuard<'_, Option<Running>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fixed word for metrics and logs.
fn label(resource: Resource) -> &'static str {
    match resource {
        Resource::Cpu => "cpu",
        Resource::Memory => "memory",
        Resource::Power => "power",
    }
}

/// The target of an order, as a number for logs: milli-CPU or bytes.
fn target(what: What) -> u64 {
    match what {
        What::SetCpu(cpu) => cpu.0.into(),
        What::SetMemory(memory) => memory.0,
        What::PowerDown => 0,
    }
}

/// The same of what is plugged.
fn shown(what: What, plugged: Plugged) -> u64 {
    match what {
        What::SetCpu(_) => plugged.cpu.0.into(),
        What::SetMemory(_) => plugged.memory.0,
        What::PowerDown => 0,
    }
}

/// An error with all its causes, for the outcome of an order.
fn reason(err: &dyn std::error::Error) -> String {
    guest_units::Chain(err).to_string()
}
