//! Starts one action of the brain as a task with a deadline, and reports how it ended.

use std::sync::Arc;
use std::time::Instant;

use controller_api::Approval;
use guest_protocol::{Link, LinkError, ScalerHost};
use guest_units::{Chain, Size};
use host_scaling::{Action, Event, Why};
use jiff::Timestamp;
use scheduler_protocol::{ObjectRef, PermitRequest, VERSION};
use tokio::sync::mpsc;

use super::{Report, Shared, Task};
use crate::effects::{guest, vm};
use crate::metrics::{ByCode, ByDirection, ByEndpointAndCode, ByResult, Direction, Metrics};
use crate::patch::operations;
use crate::view::{Seen, VmView, look};

/// Starts `action`; its end arrives as a report.
pub(super) fn start(task: &Task, action: Action, why: Why) {
    let shared = Arc::clone(&task.shared);
    let report = task.report.clone();
    let view = task.view.clone();
    let tasks = &task.shared.tasks;
    match action {
        Action::AskPermit { generation, want, least, current } => {
            let request = PermitRequest {
                version: VERSION,
                vm: object(&view, view.key.name.clone(), view.uid.clone()),
                pod: object(&view, view.pod_name.clone(), task.pod_uid.clone()),
                generation,
                want,
                least,
                current,
            };
            let demand_age_ms = task.heard_at.map(millis);
            let permit = view.approved.unwrap_or(current);
            let asked = Asked { request, why, permit, demand_age_ms };
            tasks.spawn(ask_permit(shared, view, asked, report));
        }
        Action::PatchVm { generation, size, approval: wanted, .. } => {
            let kept = task.approval.as_ref().filter(|(found, _)| Some(*found) == wanted);
            let approval = kept.map(|(_, approval)| approval.clone());
            if approval.is_none() && wanted.is_some() {
                // Written without it, it would count as written.
                let ended = Report::PatchFailed { generation, raced: false, seen: None };
                tasks.spawn(async move { drop(report.send(ended).await) });
                return;
            }
            let patch = Patch { generation, size, approval, why };
            tasks.spawn(patch_vm(shared, view, patch, report));
        }
        Action::AskGuest { generation, from, to } => {
            tasks.spawn(Talk::new(task, generation).ask(from, to));
        }
        Action::TellGuest { generation, plugged } => {
            tasks.spawn(Talk::new(task, generation).tell(plugged));
        }
    }
}

fn object(view: &VmView, name: String, uid: String) -> ObjectRef {
    ObjectRef { namespace: view.key.namespace.clone(), name, uid }
}

struct Asked {
    request: PermitRequest,
    why: Why,
    /// The permit before, for the metrics.
    permit: Size,
    /// How long ago the guest said what was decided on.
    demand_age_ms: Option<u64>,
}

async fn ask_permit(shared: Arc<Shared>, view: VmView, asked: Asked, report: mpsc::Sender<Report>) {
    let Asked { request, why, permit: before, demand_age_ms } = asked;
    let (vm, namespace) = (view.key.name.as_str(), view.key.namespace.as_str());
    let (generation, want) = (request.generation, request.want);
    tracing::info!(
        vm,
        namespace,
        generation,
        want_cpu = want.cpu.0,
        want_memory = want.memory.0,
        why = why.label(),
        demand_age_ms,
        "permit asked"
    );
    let metrics = &shared.metrics;
    metrics.permit_requested.count(before, want);
    let began = Instant::now();
    let answer = shared.scheduler.permit(&request).await;
    Metrics::observe(&metrics.permit_latency, before, want, began.elapsed());
    let ended = match answer {
        Ok(answer) => {
            metrics.permits.get_or_create(&ByCode { code: "200" }).inc();
            metrics.permit_accepted.count(before, answer.permit);
            count_refusals(&shared, before, want, answer.permit);
            tracing::info!(
                vm,
                namespace,
                generation,
                permit_cpu = answer.permit.cpu.0,
                permit_memory = answer.permit.memory.0,
                leased_cpu = answer.leased.map(|leased| leased.cpu.0),
                leased_memory = answer.leased.map(|leased| leased.memory.0),
                outcome = answer.outcome.label(),
                ms = millis(began),
                "permit answered"
            );
            let scheduler_protocol::Approval { size, epoch, generation: number, signature } =
                answer.approval;
            let approval = Approval { size, epoch, generation: number, signature };
            let (permit, reason) = (answer.permit, answer.reason);
            Report::Permit { generation, permit, reason, approval, want }
        }
        Err(err) => {
            metrics.permits.get_or_create(&ByCode { code: err.label() }).inc();
            tracing::warn!(vm, namespace, generation, error = %Chain(&err), "permit failed");
            Report::PermitFailed { generation, newest: err.newest() }
        }
    };
    let _task_ended = report.send(ended).await;
}

fn count_refusals(shared: &Shared, before: Size, want: Size, permit: Size) {
    if want.fits_in(permit) {
        return;
    }
    let direction = ByDirection { direction: Direction::of(before, want) };
    let family = if permit.fits_in(before) {
        &shared.metrics.full_denials
    } else {
        &shared.metrics.partial_approvals
    };
    family.get_or_create(&direction).inc();
}

struct Patch {
    generation: u64,
    size: Size,
    approval: Option<Approval>,
    why: Why,
}

async fn patch_vm(shared: Arc<Shared>, view: VmView, patch: Patch, report: mpsc::Sender<Report>) {
    let Patch { generation, size, approval, why } = patch;
    let (vm, namespace) = (view.key.name.as_str(), view.key.namespace.as_str());
    let limit = shared.file.vm.request_timeout;
    let metrics = &shared.metrics;
    let operations = operations(&view, size, approval.as_ref(), Timestamp::now());
    metrics.patch_requested.count(view.spec, size);
    let began = Instant::now();
    let answer = vm::patch(&shared.client, &view.key, &operations, limit).await;
    Metrics::observe(&metrics.patch_latency, view.spec, size, began.elapsed());
    // What is no longer ours changes nothing: the watch ends the task, and until then the view stays.
    let ours = |object| match look(&object, &shared.node, &shared.file) {
        Seen::Ours(seen) if seen.uid == view.uid => Some(seen),
        _ => None,
    };
    let ended = match answer {
        Ok(object) => {
            metrics.patches.get_or_create(&ByResult { result: "ok" }).inc();
            tracing::info!(
                vm,
                namespace,
                generation,
                cpu = size.cpu.0,
                memory = size.memory.0,
                why = why.label(),
                ms = millis(began),
                "vm patched"
            );
            Report::Patched { generation, from: view.spec, to: size, seen: ours(object) }
        }
        Err(err) => {
            metrics.patches.get_or_create(&ByResult { result: err.label() }).inc();
            let raced = err.raced();
            tracing::warn!(vm, namespace, generation, raced, error = %Chain(&err), "patch failed");
            let again = if raced { vm::read(&shared.client, &view.key, limit).await } else { None };
            Report::PatchFailed { generation, raced, seen: again.and_then(ours) }
        }
    };
    let _task_ended = report.send(ended).await;
}

/// One question or notice to the guest.
struct Talk {
    shared: Arc<Shared>,
    view: VmView,
    link: Option<Link<ScalerHost>>,
    report: mpsc::Sender<Report>,
    generation: u64,
    began: Instant,
}

impl Talk {
    fn new(task: &Task, generation: u64) -> Self {
        Self {
            shared: Arc::clone(&task.shared),
            view: task.view.clone(),
            link: task.link.as_ref().map(|(_, link)| link.clone()),
            report: task.report.clone(),
            generation,
            began: Instant::now(),
        }
    }

    async fn ask(self, from: Size, to: Size) {
        let (generation, metrics) = (self.generation, &self.shared.metrics);
        metrics.guest_requested.count(from, to);
        let limit = self.shared.file.guest.response_timeout;
        let answer = match &self.link {
            Some(link) => guest::ask(link, generation, (from, to), limit).await,
            None => Err(LinkError::Closed),
        };
        let ended = answer.map(|shrink| match shrink {
            guest::Shrink::Fine => {
                metrics.guest_approved.count(from, to);
                Report::Event(Event::GuestFine { generation })
            }
            guest::Shrink::Veto { least, reason } => {
                let (vm, namespace) = (&self.view.key.name, &self.view.key.namespace);
                tracing::info!(vm, namespace, generation, reason, "guest vetoed");
                Report::Vetoed { generation, least, reason }
            }
        });
        self.finish("MayShrink", (from, to), ended).await;
    }

    async fn tell(self, plugged: Size) {
        let generation = self.generation;
        let limit = self.shared.file.guest.response_timeout;
        let answer = match &self.link {
            Some(link) => guest::tell(link, generation, plugged, limit).await,
            None => Err(LinkError::Closed),
        };
        let ended = answer.map(|confirmed| {
            if let Some((cpus_online, memory_total)) = confirmed {
                tracing::info!(
                    vm = self.view.key.name,
                    namespace = self.view.key.namespace,
                    generation,
                    cpus_online,
                    memory_total = memory_total.0,
                    plugged_cpu = plugged.cpu.0,
                    plugged_memory = plugged.memory.0,
                    "guest confirmed"
                );
            }
            Report::Event(Event::GuestTold { generation })
        });
        self.finish("Resized", (plugged, plugged), ended).await;
    }

    async fn finish(
        self,
        endpoint: &'static str,
        (from, to): (Size, Size),
        ended: Result<Report, LinkError>,
    ) {
        let Self { shared, view, generation, .. } = &self;
        Metrics::observe(&shared.metrics.guest_latency, from, to, self.began.elapsed());
        let code = ended.as_ref().map_or_else(LinkError::label, |_| "ok");
        let labels = ByEndpointAndCode { endpoint, code };
        shared.metrics.guest_outbound.get_or_create(&labels).inc();
        let ended = ended.unwrap_or_else(|err| {
            let (vm, namespace) = (&view.key.name, &view.key.namespace);
            tracing::warn!(vm, namespace, generation, error = %Chain(&err), "guest did not answer");
            Report::GuestFailed { generation: *generation }
        });
        let _task_ended = self.report.send(ended).await;
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
