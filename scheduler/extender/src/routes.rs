//! What is answered over TLS: permits of agents, and the calls of kube-scheduler.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use guest_units::Chain;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use scheduler_ledger::{Answer, Asked, Event, Ticket, Why};
use scheduler_protocol::extender::{
    self, BindingArgs, BindingResult, ExtenderArgs, FilterResult, HostPriority, MetaVictims,
    NodeName, PreemptionArgs, PreemptionResult,
};
use scheduler_protocol::{
    Approval, MAX_BODY_BYTES, MAX_REASON_CHARS, ObjectRef, PERMIT_PATH, PermitAnswer,
    PermitRequest, Refusal, RefusalCode,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::auth::Authenticator;
use crate::convert;
use crate::core::{Command, Ended, Unbound};
use crate::effects::{CallError, Effects, millis};
use crate::tls::Peer;
use crate::visitors::Visitor;

/// So many permits at a time.
pub(crate) const MAX_PERMITS: usize = 1024;
/// A body is waited for so long.
const BODY_LIMIT: Duration = Duration::from_secs(5);

/// A binding of unknown end is looked for after this.
const LATE_BINDING: Duration = Duration::from_secs(1);

/// What the handlers share.
pub(crate) struct Shared {
    pub(crate) agents: Authenticator,
    pub(crate) effects: Effects,
    pub(crate) permits: Semaphore,
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(PERMIT_PATH, post(permit))
        .route("/scheduler/filter", post(filter))
        .route("/scheduler/prioritize", post(prioritize))
        .route("/scheduler/preempt", post(preempt))
        .route("/scheduler/bind", post(bind))
        .with_state(shared)
}

/// A refusal on its way out.
struct Refused(Refusal);

impl Refused {
    fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self(Refusal { code, message: message.into(), newest: None })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<Ended> for Refused {
    fn from(_: Ended) -> Self {
        Self::new(RefusalCode::NotReady, "the scheduler is stopping")
    }
}

async fn permit(
    State(shared): State<Arc<Shared>>,
    Extension(visitor): Extension<Arc<Visitor>>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let answered = answer_permit(&shared, &visitor, request, started).await;
    let code = answered.as_ref().map_or_else(|refused| refused.0.code.status(), |_| 200);
    shared.effects.metrics.request(code);
    match answered {
        Ok(answer) => Json(answer).into_response(),
        Err(refused) => {
            let Refusal { code, message, .. } = &refused.0;
            tracing::info!(code = code.label(), message, ms = millis(started), "permit refused");
            refused.into_response()
        }
    }
}

async fn answer_permit(
    shared: &Shared,
    visitor: &Visitor,
    request: Request,
    started: Instant,
) -> Result<PermitAnswer, Refused> {
    // Who asks is known before a byte of the body is read, and before the request takes the place of another.
    let caller = shared.agents.caller(request.headers()).await;
    let caller = caller.map_err(|err| Refused::new(err.code(), err.to_string()))?;
    if visitor.is_agent_of(&caller.node).is_err() {
        return Err(Refused::new(RefusalCode::Busy, "the node has too many connections"));
    }
    let Ok(_turn) = shared.permits.try_acquire() else {
        return Err(Refused::new(RefusalCode::Busy, "too many requests at a time"));
    };
    let body = read(request.into_body(), MAX_BODY_BYTES).await?;
    let request: PermitRequest = parse(&body)?;
    request.check().map_err(|err| Refused::new(RefusalCode::BadRequest, err.to_string()))?;
    let asked = Asked {
        ticket: Ticket(0),
        caller_node: caller.node.clone(),
        vm: request.vm.clone(),
        pod: request.pod.clone(),
        generation: request.generation,
        want: request.want,
        least: request.least,
        current: request.current,
    };
    let (answer, why) = shared.effects.core.ask(|reply| Command::Permit { asked, reply }).await?;
    let answer = signed(shared, &request, answer)?;
    shared.effects.metrics.decided(answer.outcome, why.label(), &caller.node, started.elapsed());
    tracing::info!(
        vm = request.vm.name, namespace = request.vm.namespace, generation = request.generation,
        outcome = answer.outcome.label(), why = why.label(), want = %request.want,
        permit = %answer.permit, reason = answer.reason, ms = millis(started), "permit decided"
    );
    Ok(answer)
}

/// The last step: nothing is signed when the lease has run out meanwhile.
fn signed(
    shared: &Shared,
    request: &PermitRequest,
    answer: Answer,
) -> Result<PermitAnswer, Refused> {
    let (generation, outcome, seal, leased, reason) = match answer {
        Answer::Permit { generation, outcome, seal, leased, reason } => {
            (generation, outcome, seal, leased, reason)
        }
        Answer::Refused { code, message, newest } => {
            return Err(Refused(Refusal { code, message, newest }));
        }
    };
    if !shared.effects.lease.holds(seal.epoch) {
        return Err(Refused::new(RefusalCode::NotReady, "the lease was lost"));
    }
    let approval = shared.effects.signer.sign(&request.vm.uid, seal).map_err(|err| {
        tracing::error!(error = %Chain(&err), "approval not signed");
        Refused::new(RefusalCode::Internal, "the approval cannot be signed")
    })?;
    let controller_api::Approval { size, epoch, generation: number, signature } = approval;
    Ok(PermitAnswer {
        version: request.version,
        epoch,
        generation,
        outcome,
        permit: size,
        approval: Approval { size, epoch, generation: number, signature },
        // Version 1 does not know of it.
        leased: (request.version >= 2).then_some(leased),
        reason: reason.chars().take(MAX_REASON_CHARS).collect(),
    })
}

async fn read(body: Body, limit: usize) -> Result<axum::body::Bytes, Refused> {
    let Ok(read) = timeout(BODY_LIMIT, to_bytes(body, limit)).await else {
        let message = format!("the body did not come within {BODY_LIMIT:?}");
        return Err(Refused::new(RefusalCode::BadRequest, message));
    };
    read.map_err(|err| {
        let source = std::error::Error::source(&err);
        if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
            Refused::new(RefusalCode::TooLarge, format!("the body has more than {limit} bytes"))
        } else {
            Refused::new(RefusalCode::BadRequest, "the body ended early")
        }
    })
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refused> {
    serde_json::from_slice(body)
        .map_err(|err| Refused::new(RefusalCode::BadRequest, format!("the body: {err}")))
}

/// What all calls of kube-scheduler have in common: nobody else is let in, and each is counted.
async fn scheduler_call<A: IntoResponse>(
    shared: &Shared,
    method: &'static str,
    (peer, body): (Peer, Body),
    answer: impl AsyncFnOnce(&[u8]) -> Result<A, Refused>,
) -> Response {
    let (outcome, response) = if peer.kube_scheduler {
        let answered = async { answer(&read(body, extender::MAX_BODY_BYTES).await?).await }.await;
        (if answered.is_ok() { "success" } else { "error" }, answered.into_response())
    } else {
        let reason = "the client certificate is not kube-scheduler's";
        ("forbidden", Refused::new(RefusalCode::Forbidden, reason).into_response())
    };
    shared.effects.metrics.extension_call(method, outcome);
    response
}

type Call = (State<Arc<Shared>>, Extension<Peer>, Body);

async fn filter((State(shared), Extension(peer), body): Call) -> Response {
    scheduler_call(&shared, "filter", (peer, body), async |body| {
        let args: ExtenderArgs<'_> = parse(body)?;
        let pod = convert::pod_view(&args.pod);
        let fault = |error| written(&FilterResult { error, ..FilterResult::default() }, 0);
        let Some(names) = &args.node_names else {
            return fault("the extender needs nodeCacheCapable: true");
        };
        let names = || names.iter().map(NodeName::as_str);
        let placement = match shared.effects.core.read(|ledger| ledger.filter(&pod, names()))? {
            Ok(placement) => placement,
            Err(err) => return Err(Refused::new(RefusalCode::NotReady, err.to_string())),
        };
        let reasons = placement.reasons();
        let mut result = FilterResult::default();
        for (name, short) in names().zip(&placement.short) {
            match short {
                None => result.node_names.push(name),
                Some(short) => result.failed_nodes.push((name, reasons.of(*short))),
            }
        }
        tracing::debug!(
            pod = pod.name, nodes = ?result.node_names, refused = ?result.failed_nodes, "filtered"
        );
        written(&result, body.len())
    })
    .await
}

async fn prioritize((State(shared), Extension(peer), body): Call) -> Response {
    scheduler_call(&shared, "prioritize", (peer, body), async |body| {
        let args: ExtenderArgs<'_> = parse(body)?;
        let pod = convert::pod_view(&args.pod);
        let names = || args.node_names.iter().flatten().map(NodeName::as_str);
        let scores = shared.effects.core.read(|ledger| ledger.prioritize(&pod, names()))?;
        let scored = names().zip(scores).map(|(host, score)| HostPriority { host, score });
        written(&scored.collect::<Vec<_>>(), 2 * body.len())
    })
    .await
}

/// An answer in JSON, of about so many bytes.
fn written(answer: &impl Serialize, bytes: usize) -> Result<Response, Refused> {
    let mut text = Vec::with_capacity(bytes);
    serde_json::to_writer(&mut text, answer).map_err(|err| {
        tracing::error!(error = %Chain(&err), "answer not written");
        Refused::new(RefusalCode::Internal, "the answer cannot be written")
    })?;
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

async fn preempt((State(shared), Extension(peer), body): Call) -> Response {
    scheduler_call(&shared, "preempt", (peer, body), async |body| {
        let args: PreemptionArgs<'_> = parse(body)?;
        let pod = convert::pod_view(&args.pod);
        let mut proposed = args.node_name_to_meta_victims.unwrap_or_default();
        let uids = |victims: &MetaVictims| -> Vec<String> {
            victims.pods.iter().flatten().map(|pod| pod.uid.clone()).collect()
        };
        let victims: Vec<(&String, Vec<String>)> =
            proposed.iter().map(|(node, victims)| (node, uids(victims))).collect();
        let victims = victims.iter().map(|(node, uids)| (*node, uids.as_slice()));
        let kept = shared.effects.core.read(|ledger| ledger.preempt(&pod, victims))?;
        // A ledger that is not ready lets nobody be evicted.
        let kept: BTreeSet<String> = kept.unwrap_or_default().into_iter().collect();
        proposed.retain(|node, _| kept.contains(node));
        Ok(Json(PreemptionResult { node_name_to_meta_victims: proposed }))
    })
    .await
}

async fn bind((State(shared), Extension(peer), body): Call) -> Response {
    scheduler_call(&shared, "bind", (peer, body), async |body| {
        let args: BindingArgs = parse(body)?;
        // What has begun is ended, also when kube-scheduler hangs up: the pod would count for nothing, and nobody would say so.
        let shared = Arc::clone(&shared);
        let tasks = shared.effects.tasks.clone();
        let bound = tasks.spawn(async move { bind_pod(&shared, &args).await }).await;
        let error = bound.map_err(|_| Ended)??.err().unwrap_or_default();
        Ok(Json(BindingResult { error }))
    })
    .await
}

fn pod_of(args: &BindingArgs) -> ObjectRef {
    ObjectRef {
        namespace: args.pod_namespace.clone(),
        name: args.pod_name.clone(),
        uid: args.pod_uid.clone(),
    }
}

async fn bind_pod(shared: &Shared, args: &BindingArgs) -> Result<Result<(), String>, Refused> {
    let ask = || {
        let (pod_uid, node) = (args.pod_uid.clone(), args.node.clone());
        shared.effects.core.ask(|reply| Command::Bind { pod_uid, node, reply })
    };
    let mut allowed = ask().await?;
    if matches!(allowed, Err(Unbound::UnknownPod)) {
        // kube-scheduler's watch was faster than ours.
        shared.effects.look_up(&pod_of(args)).await;
        allowed = ask().await?;
    }
    let epoch = match allowed {
        Err(Unbound::UnknownPod) => return Ok(Err("the pod is not known".to_owned())),
        Err(Unbound::Refused(reason)) => return Ok(Err(reason)),
        Ok(epoch) => epoch,
    };
    let (pod, namespace, node) = (&args.pod_name, &args.pod_namespace, &args.node);
    let Err(err) = shared.effects.bind(args, epoch).await else {
        tracing::info!(pod, namespace, node, why = Why::SpecWants.label(), "pod bound");
        return Ok(Ok(()));
    };
    tracing::warn!(pod, namespace, node, error = %Chain(&err), "pod not bound");
    // Without the API server's word the pod may be bound after all: it counts until somebody knows.
    if matches!(err.status(), Some(400..=499)) || matches!(err, CallError::NotHeld) {
        shared.effects.core.tell(Event::PlacingFailed(args.pod_uid.clone())).await?;
    } else {
        // If it is bound, that is known soon; the word that it is not counts later, when nothing can be under way any more.
        shared.effects.look_up_after(LATE_BINDING, pod_of(args));
    }
    Ok(Err(Chain(&err).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        type Chunk = Result<axum::body::Bytes, std::io::Error>;
        let body = Body::from_stream(futures::stream::pending::<Chunk>());
        let refused = timeout(2 * BODY_LIMIT, read(body, 1)).await.unwrap().unwrap_err();
        assert_eq!(refused.0.code, RefusalCode::BadRequest);
    }
}
