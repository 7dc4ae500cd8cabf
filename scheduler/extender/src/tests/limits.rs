//! What a caller may take from others, and what is kept about them.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_agent_takes_the_place_of_a_permit() {
    let extender = extender("places").await;
    let _all = extender.shared.permits.acquire_many(MAX_PERMITS.try_into().unwrap()).await;
    let busy = extender.refusal(Some("agent-n1"), permit(1, "1").to_string()).await;
    assert_eq!(busy, (429, RefusalCode::Busy));
    let stranger = extender.refusal(Some("stolen"), permit(1, "1").to_string()).await;
    assert_eq!(stranger, (401, RefusalCode::Unauthenticated), "who waits for that has no place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_noted_about_a_vm_goes_with_it() {
    let extender = extender("noted").await;
    for count in 1..=2 {
        extender.running().await;
        let body = permit(count, "1").to_string();
        let (status, _) =
            extender.request(None, "/v1/permit", Some("agent-n1"), body).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        let notes = || async {
            let notes = extender.called(&Method::PATCH, "/virtualmachines/pg");
            let requested = controller_api::names::ANNOTATION_REQUESTED;
            let noted = |note: &&Value| note["metadata"]["annotations"][requested].is_string();
            notes.iter().filter(noted).count() as u64 == count
        };
        extender.until("the note of the request", |_| true, notes).await;
        // The watch was interrupted when the VM went.
        extender.core.tell(Event::VmsListed([].into())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_bad_request_has_its_refusal_and_changes_nothing() {
    let extender = extender("kinds").await;
    extender.running().await;
    let before = extender.dump().await;
    let good = permit(1, "1");
    let with = |place: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(place).unwrap() = value;
        changed.to_string().into_bytes()
    };
    let bad = (400, RefusalCode::BadRequest);
    let unknown = (404, RefusalCode::Unknown);
    let nobody = (401, RefusalCode::Unauthenticated);
    let good = good.to_string().into_bytes();
    let large = [good.clone(), vec![b' '; scheduler_protocol::MAX_BODY_BYTES]].concat();
    let ours = Some("agent-n1");
    let table = [
        ("oversized", ours, large, (413, RefusalCode::TooLarge)),
        ("empty", ours, Vec::new(), bad),
        ("cut off", ours, good[..good.len() - 1].to_vec(), bad),
        ("followed by more", ours, [&good[..], b"{}"].concat(), bad),
        ("not text", ours, vec![0xff; 64], bad),
        ("nested", ours, vec![b'['; 10_000], bad),
        ("a later version", ours, with("/version", json!(99)), bad),
        ("no version", ours, with("/version", json!(0)), bad),
        ("zero CPU", ours, with("/want/vCPUs", json!(0)), bad),
        ("zero memory", ours, with("/least/mem", json!("0")), bad),
        ("negative", ours, with("/want/mem", json!("-1Gi")), bad),
        ("absurd CPU", ours, with("/want/vCPUs", json!("1e30")), bad),
        ("absurd memory", ours, with("/want/mem", json!("9999Ei")), bad),
        ("least above want", ours, with("/least/vCPUs", json!(3)), bad),
        ("a name that no object has", ours, with("/vm/name", json!("../pg")), bad),
        ("two namespaces", ours, with("/pod/namespace", json!("other")), bad),
        ("an unknown VM", ours, with("/vm/uid", json!("u9")), unknown),
        ("an unknown pod", ours, with("/pod/uid", json!("p9")), unknown),
        ("no token", None, good.clone(), nobody),
        ("an expired token", Some("expired"), good.clone(), nobody),
        ("another node's", Some("agent-n2"), good.clone(), (403, RefusalCode::Forbidden)),
    ];
    for (kind, token, body, expected) in table {
        let started = Instant::now();
        assert_eq!(extender.refusal(token, body).await, expected, "{kind}");
        let waited = expected == unknown || started.elapsed() >= server::REFUSAL_PAUSE;
        assert!(waited, "{kind} may be sent as fast as one can");
        assert_eq!(extender.dump().await, before, "{kind} changes the books");
    }
    let (status, _) = extender.request(None, "/v1/permit", ours, good).await.unwrap();
    assert_eq!(status, StatusCode::OK);
}
