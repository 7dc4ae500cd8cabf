//! What is late, old or without the lease does nothing.

use futures::FutureExt as _;
use scheduler_ledger::ResizeResult;
use tower::ServiceExt as _;

use super::*;
use crate::tls::Peer;

fn failure(code: u16) -> Value {
    let reason = if code == 404 { "NotFound" } else { "" };
    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "no"})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resize_is_for_one_version_of_the_pod_and_is_repeated_for_the_next() {
    let extender = extender("version").await;
    extender.running().await;
    extender.answer(Method::PATCH, "/pods/pg-x/resize", 409, failure(409));
    extender.answer(Method::GET, "/pods/pg-x", 200, pod_json("9"));
    let asked = extender.request(None, "/v1/permit", Some("agent-n1"), permit(1, "2").to_string());
    let kubelet = async {
        let resized = |call: &(Method, String, Value)| {
            call.1.ends_with("/pods/pg-x/resize") && call.2["metadata"]["resourceVersion"] == "9"
        };
        extender.until("the second resize", resized, || async { true }).await;
        let mut grown = pod(2100, 2);
        grown.version = 10;
        extender.core.tell(Event::Pod(grown)).await.unwrap();
    };
    let started = Instant::now();
    let (answered, ()) = tokio::join!(asked, kubelet);
    let (status, body) = answered.unwrap();
    assert_eq!((status, &body["outcome"]), (StatusCode::OK, &json!("granted")), "{body}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let versions: Vec<Value> = extender
        .called(&Method::PATCH, "/pods/pg-x/resize")
        .into_iter()
        .map(|call| call["metadata"]["resourceVersion"].clone())
        .collect();
    assert_eq!(versions, [json!("7"), json!("9")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_is_used_up_is_named_as_the_reason() {
    let extender = extender("quota").await;
    extender.running().await;
    let mut refusal = failure(403);
    refusal["message"] = json!(
        "pods \"pg-x\" is forbidden: exceeded quota: q, requested: requests.cpu=1, used: requests.cpu=4, limited: requests.cpu=4"
    );
    extender.answer(Method::PATCH, "/pods/pg-x/resize", 403, refusal.clone());
    extender.answer(Method::PATCH, "/pods/pg-x/resize", 403, refusal);
    let asked = extender.request(None, "/v1/permit", Some("agent-n1"), permit(1, "2").to_string());
    let (status, body) = asked.await.unwrap();
    assert_eq!((status, &body["outcome"]), (StatusCode::OK, &json!("denied")), "{body}");
    assert!(body["reason"].as_str().unwrap().contains("ResourceQuota"), "{body}");
    let told = |(_, path, event): &(Method, String, Value)| {
        path == "/apis/events.k8s.io/v1/namespaces/default/events"
            && event["reason"] == "PermitDenied"
            && event["regarding"]["uid"] == "u1"
            && event["note"].as_str().is_some_and(|note| note.contains("ResourceQuota"))
    };
    extender.until("the event for the VM's users", told, || async { true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_lease_nothing_is_sent() {
    let extender = extender("fence").await;
    extender.running().await;
    let args = json!({"PodName": "o1", "PodNamespace": "default", "PodUID": "o1", "Node": "n1"});
    let args = serde_json::from_value(args).unwrap();
    let epoch = extender.dump().await.epoch.unwrap();
    let refused = extender.effects.bind(&args, epoch + 1).await;
    assert!(matches!(refused, Err(CallError::NotHeld)), "{refused:?}");
    assert!(extender.called(&Method::POST, "/pods/o1/binding").is_empty());
    let (core, mut told) = core::channel(Settings::default());
    let effects = Effects { core, ..extender.effects.clone() };
    let asked = extender.called(&Method::GET, "/pods/pg-x").len();
    effects.resize(resize(epoch + 1), scheduler_ledger::Why::Return);
    let ended = told.commands.recv().await;
    let result = ResizeResult::NotDone;
    assert!(
        matches!(ended, Some(Command::Event(Event::ResizeEnded { result: it, .. })) if it == result),
        "the first that is heard of it"
    );
    assert_eq!(extender.called(&Method::GET, "/pods/pg-x").len(), asked, "nothing is asked either");
    assert!(extender.called(&Method::PATCH, "/pods/pg-x/resize").is_empty());
    extender.effects.bind(&args, epoch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_done_is_told_from_what_may_have_been() {
    let extender = extender("resize-answers").await;
    extender.running().await;
    let epoch = extender.dump().await.epoch.unwrap();
    let (core, mut told) = core::channel(Settings::default());
    let effects = Effects { core, ..extender.effects.clone() };
    let answers = [
        (409, ResizeResult::Raced),
        (429, ResizeResult::NotDone),
        (403, ResizeResult::Refused),
        (422, ResizeResult::Refused),
        (503, ResizeResult::Unknown),
        (504, ResizeResult::Unknown),
    ];
    for (code, result) in answers {
        extender.answer(Method::PATCH, "/pods/pg-x/resize", code, failure(code));
        effects.resize(resize(epoch), scheduler_ledger::Why::Return);
        let ended = loop {
            if let Some(Command::Event(Event::ResizeEnded { result, .. })) =
                told.commands.recv().await
            {
                break result;
            }
        };
        assert_eq!(ended, result, "{code}");
    }
}

fn resize(epoch: u64) -> crate::effects::ResizeOrder {
    crate::effects::ResizeOrder {
        pod: scheduler_protocol::ObjectRef {
            namespace: "default".into(),
            name: "pg-x".into(),
            uid: "p1".into(),
        },
        version: 7,
        epoch,
        number: 1,
        requests: Amount { cpu_millis: 1, memory_bytes: 1 },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_approval_that_was_put_back_is_replaced_and_a_newer_one_stays() {
    let extender = extender("put-back").await;
    extender.running().await;
    let epoch = extender.dump().await.epoch.unwrap();
    let size = Size { cpu: MilliCpu(1000), memory: Bytes::from_gib(1) };
    let seal = |generation| scheduler_ledger::Seal { epoch, generation, size };
    let vm = || scheduler_protocol::ObjectRef {
        namespace: "default".into(),
        name: "pg".into(),
        uid: "u1".into(),
    };
    let path = "/virtualmachines/pg";
    for (shown, written) in [(Some(9), true), (Some(10), false), (Some(11), false), (None, true)] {
        let mut object = sign::tests::vm("u1");
        object.metadata.resource_version = Some("5".into());
        object.metadata.annotations = shown.map(|generation| {
            extender.signer.sign("u1", seal(generation)).unwrap().to_annotations()
        });
        let looks = extender.called(&Method::GET, path).len();
        let before = extender.called(&Method::PATCH, path).len();
        extender.answer(Method::GET, path, 200, serde_json::to_value(&object).unwrap());
        extender.effects.approve(vm(), seal(10), scheduler_ledger::Why::SpecWants);
        let done = || async {
            let patched = extender.called(&Method::PATCH, path).len() - before;
            extender.called(&Method::GET, path).len() > looks && patched == usize::from(written)
        };
        extender.until("the write", |_| true, done).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(done().await, "shown: {shown:?}");
    }
}

/// An ordinary pod without a node.
fn waiting() -> PodFacts {
    PodFacts {
        uid: "o1".into(),
        namespace: "default".into(),
        name: "o1".into(),
        node: None,
        finished: false,
        unplaced: None,
        version: 3,
        kind: PodKind::Ordinary { requests: Amount { cpu_millis: 5000, memory_bytes: GIB } },
    }
}

/// On one thread: nothing else goes on while the call is looked at once.
#[tokio::test]
async fn a_binding_that_has_begun_is_ended_when_kube_scheduler_hangs_up() {
    let extender = extender("hangs-up").await;
    extender.running().await;
    extender.core.tell(Event::Pod(waiting())).await.unwrap();
    let args = json!({"PodName": "o1", "PodNamespace": "default", "PodUID": "o1", "Node": "n1"});
    let request = Request::post("/scheduler/bind").extension(Peer { kube_scheduler: true });
    let request = request.body(axum::body::Body::from(args.to_string())).unwrap();
    let call = routes::router(Arc::clone(&extender.shared)).oneshot(request);
    let answered = call.now_or_never();
    assert!(answered.is_none(), "it has begun, and is dropped: {answered:?}");
    let binding = |call: &(Method, String, Value)| call.1.ends_with("/pods/o1/binding");
    extender.until("the binding", binding, || async { true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_of_unknown_end_counts_until_the_api_server_is_asked() {
    let extender = extender("unknown").await;
    extender.running().await;
    extender.core.tell(Event::Pod(waiting())).await.unwrap();
    // It may have been done.
    extender.answer(Method::POST, "/pods/o1/binding", 502, json!("bad gateway"));
    let identity =
        extender.authority.issue(KUBE_SCHEDULER_SAN, ExtendedKeyUsagePurpose::ClientAuth);
    let args = json!({"PodName": "o1", "PodNamespace": "default", "PodUID": "o1", "Node": "n1"});
    let asked = extender.request(Some(&identity), "/scheduler/bind", None, args.to_string());
    assert!(asked.await.unwrap().1["Error"].is_string());
    let reserved = async || extender.dump().await.nodes["n1"].reserved.cpu_millis;
    assert_eq!(reserved().await, 1100 + 5000);
    extender.answer(Method::GET, "/pods/o1", 404, failure(404));
    extender.until("the end of it", |_| true, || async { reserved().await == 1100 }).await;
    assert!(!extender.called(&Method::GET, "/pods/o1").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_decide_keeps_no_connection() {
    let extender = extender("away").await;
    let identity =
        extender.authority.issue(KUBE_SCHEDULER_SAN, ExtendedKeyUsagePurpose::ClientAuth);
    let args = json!({"Pod": {"metadata": {"name": "x", "namespace": "d", "uid": "x"},
        "spec": {"containers": []}}, "NodeNames": ["n1"]});
    let token = Some("agent-n1");
    for (path, identity, token, body) in [
        ("/scheduler/filter", Some(&identity), None, args),
        ("/v1/permit", None, token, permit(1, "2")),
    ] {
        let (mut sender, connection) = extender.dial(extender.address, identity).await.unwrap();
        let mut request = Request::post(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body.to_string().into())).unwrap();
        let (response, ended) = tokio::join!(sender.send_request(request), connection);
        let response = response.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(response.headers()["connection"], "close", "{path}");
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_writes_a_condition_that_is_another_each_time() {
    let extender = extender("fences").await;
    extender.running().await;
    let pod = scheduler_protocol::ObjectRef {
        namespace: "default".into(),
        name: "pg-x".into(),
        uid: "p1".into(),
    };
    let epoch = extender.dump().await.epoch.unwrap();
    extender.effects.fence_pod(pod.clone(), (epoch + 1, 1), false);
    for number in 2..4 {
        extender.effects.fence_pod(pod.clone(), (epoch, number), number == 3);
    }
    let fences = || extender.called(&Method::PATCH, "/pods/pg-x/status");
    extender.until("two fences", |_| true, || async { fences().len() >= 2 }).await;
    for fence in fences() {
        assert_eq!(fence["metadata"], json!({"uid": "p1"}));
        assert_eq!(fence["spec"], Value::Null);
        let [condition] = &fence["status"]["conditions"].as_array().unwrap()[..] else {
            panic!("{fence}")
        };
        assert_eq!(condition["type"], controller_api::names::CONDITION_FENCED);
        let message = condition["message"].as_str().unwrap();
        assert!(message.contains(&format!("epoch {epoch} ")), "{message}");
    }
    assert_ne!(fences()[0], fences()[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_of_unknown_end_is_looked_for_at_once() {
    let extender = extender_with("late-binding", Settings::default()).await;
    extender.running().await;
    extender.core.tell(Event::Pod(waiting())).await.unwrap();
    let identity =
        extender.authority.issue(KUBE_SCHEDULER_SAN, ExtendedKeyUsagePurpose::ClientAuth);
    let status = json!({"kind": "Status", "status": "Failure", "code": 504, "reason": "Timeout", "message": ""});
    extender.answer(Method::POST, "/pods/o1/binding", 504, status);
    let args = json!({"PodName": "o1", "PodNamespace": "default", "PodUID": "o1", "Node": "n1"});
    let bind = extender.request(Some(&identity), "/scheduler/bind", None, args.to_string());
    let (_, answer) = bind.await.unwrap();
    assert!(answer["Error"].as_str().is_some_and(|error| !error.is_empty()), "{answer}");
    let begun = Instant::now();
    let looked =
        |call: &(Method, String, Value)| call.0 == Method::GET && call.1.ends_with("/pods/o1");
    extender.until("the look at the pod", looked, || async { true }).await;
    // The ledger itself asks after half a minute.
    assert!(begun.elapsed() < Settings::default().confirm_pod / 3);
}
