//! What a caller may take from others, and what is kept about them.

use super::*;
use crate::visitors::{STRANGERS_OF_ONE, STRANGERS_STAY};

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

/// As an agent on its own connection, from this address.
async fn agent(extender: &Extender, from: &str) -> Sender {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    let stream = socket.connect(extender.address).await.unwrap();
    let (sender, connection) = extender.speak(stream, None).await.unwrap();
    let _connection = extender.tasks.spawn(connection);
    sender
}

async fn asks(sender: &mut Sender, generation: u64) -> StatusCode {
    let body = permit(generation, "1").to_string();
    let request = Request::post("/v1/permit").header("host", "localhost");
    let request = request.header("authorization", "Bearer agent-n1");
    sender.ready().await.unwrap();
    let response = sender.send_request(request.body(Full::new(body.into())).unwrap()).await;
    response.unwrap().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_keep_no_agent_out_and_do_not_stay() {
    let extender = extender("strangers").await;
    extender.running().await;
    let mut known = agent(&extender, "127.0.0.1").await;
    assert_eq!(asks(&mut known, 1).await, StatusCode::OK);
    let came = Instant::now();
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS_OF_ONE {
        strangers.push(TcpStream::connect(extender.address).await.unwrap());
    }
    let closed = async |stranger: &mut TcpStream| {
        let mut byte = [0];
        matches!(tokio::io::AsyncReadExt::read(stranger, &mut byte).await, Ok(0) | Err(_))
    };
    let mut more = TcpStream::connect(extender.address).await.unwrap();
    assert!(closed(&mut more).await);
    assert!(came.elapsed() < STRANGERS_STAY, "that one was not let in at all");
    assert_eq!(asks(&mut known, 2).await, StatusCode::OK);
    let mut elsewhere = agent(&extender, "127.0.0.2").await;
    assert_eq!(asks(&mut elsewhere, 3).await, StatusCode::OK);
    for stranger in &mut strangers {
        assert!(closed(stranger).await);
    }
    let (mut silent, connection) = extender.dial(extender.address, None).await.unwrap();
    let _ended = connection.await;
    assert!(silent.ready().await.is_err(), "it has said nothing for too long");
    assert_eq!(asks(&mut known, 4).await, StatusCode::OK, "whoever is known stays");
}
