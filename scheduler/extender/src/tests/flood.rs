//! What good agents feel while others send what is refused: the real listener over TLS on loopback, in one run and in turns
//! with calm. `cargo test --release -p scheduler-extender flood -- --ignored --nocapture`
//!
//! The flood comes through connections of its own, each as fast as it is answered. Clients, flood and extender share the
//! machine's cores: the control beside it is the same flood of bytes to an echo by the same listener.

#![expect(clippy::print_stdout, reason = "a table for whoever runs it")]

use axum::middleware::from_fn;
use axum::routing::post;

use super::load::let_in;
use super::*;

const ROUNDS: usize = 5;
/// In a round, for each kind of weather.
const PERMITS: u64 = 1000;
const FLOODERS: usize = 16;

/// What is refused, and as what.
fn bad() -> Vec<(Option<&'static str>, Vec<u8>, u16)> {
    let mut version = permit(1, "1");
    version["version"] = json!(99);
    let text = |value: &Value| value.to_string().into_bytes();
    vec![
        (None, text(&permit(1, "1")), 401),
        (Some("stolen"), text(&permit(1, "1")), 401),
        (Some("agent-n2"), text(&permit(1, "1")), 403),
        (Some("agent-n1"), b"{".to_vec(), 400),
        (Some("agent-n1"), vec![b'['; 16_000], 400),
        (Some("agent-n1"), text(&version), 400),
        (Some("agent-n1"), text(&permit(1, "4000000")), 400),
        (Some("agent-n1"), vec![b' '; scheduler_protocol::MAX_BODY_BYTES + 1], 413),
    ]
}

/// One exchange on a connection that stays, or is made anew when the other side has closed it.
async fn send(
    extender: &Extender,
    address: SocketAddr,
    kept: &mut Option<Sender>,
    (path, token, body): (&str, Option<&str>, axum::body::Bytes),
) -> Option<(u16, Duration)> {
    if kept.as_ref().is_none_or(Sender::is_closed) {
        let (sender, connection) = extender.dial(address, None).await.ok()?;
        let _connection = extender.tasks.spawn(connection);
        *kept = Some(sender);
    }
    let sender = kept.as_mut()?;
    let mut request = Request::post(path).header("host", "localhost");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(body)).unwrap();
    sender.ready().await.ok()?;
    let started = Instant::now();
    let response = sender.send_request(request).await.ok()?;
    let status = response.status().as_u16();
    let _answer = response.into_body().collect().await.ok()?;
    Some((status, started.elapsed()))
}

/// Sends what is refused until told to stop. Says how many.
async fn flood(
    extender: &Extender,
    address: SocketAddr,
    path: &str,
    stop: &CancellationToken,
) -> usize {
    let (mut kept, mut sent) = (None, 0);
    let bad = bad();
    while !stop.is_cancelled() {
        let (token, body, expected) = &bad[sent % bad.len()];
        let what = (path, *token, axum::body::Bytes::from(body.clone()));
        match send(extender, address, &mut kept, what).await {
            Some((status, _)) => assert!(path == "/echo" || status == *expected, "{status}"),
            // The listener closes a connection whose body it does not want to read.
            None => kept = None,
        }
        sent += 1;
    }
    sent
}

/// 99 of 100 permits take no longer than that, and half of them than that.
async fn permits(extender: &Extender, generation: &mut u64) -> (Duration, Duration) {
    let (mut kept, mut all) = (None, Vec::new());
    for _ in 0..PERMITS {
        *generation += 1;
        let body = permit(*generation, "1").to_string().into();
        let what = ("/v1/permit", Some("agent-n1"), body);
        let (status, took) = send(extender, extender.address, &mut kept, what).await.unwrap();
        assert_eq!(status, 200);
        all.push(took);
    }
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() * 99 / 100])
}

async fn echo(extender: &Extender) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = axum::Router::new()
        .route("/echo", post(|body: axum::body::Bytes| async { body }))
        .layer(from_fn(let_in));
    let (files, stop) = (Arc::clone(&extender.files), extender.shutdown.clone());
    let serving = server::serve(listener, files, routes, extender.tasks.clone(), stop);
    let _server = extender.tasks.spawn(serving);
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: only a release build says anything"]
async fn flood_beside_permits() {
    let extender = extender("flood").await;
    extender.running().await;
    let echo = echo(&extender).await;
    let before = extender.dump().await;
    let mut generation = 0;
    let kinds = [
        ("calm", None),
        ("flood", Some((extender.address, "/v1/permit"))),
        ("echo", Some((echo, "/echo"))),
    ];
    let mut found = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, target), found) in kinds.iter().zip(&mut found) {
            let stop = CancellationToken::new();
            let flooders = (0..FLOODERS).map(|_| async {
                match target {
                    Some((address, path)) => flood(&extender, *address, path, &stop).await,
                    None => 0,
                }
            });
            let good = async {
                let started = Instant::now();
                let (p50, p99) = permits(&extender, &mut generation).await;
                stop.cancel();
                (p50, p99, started.elapsed())
            };
            let (sent, (p50, p99, took)) = tokio::join!(futures::future::join_all(flooders), good);
            let rate = sent.iter().sum::<usize>() as f64 / took.as_secs_f64();
            found.push((p99.as_secs_f64() * 1e6, p50.as_secs_f64() * 1e6, rate));
        }
    }
    assert_eq!(extender.dump().await.nodes["n1"].promised, before.nodes["n1"].promised);
    let medians = found.map(|mut all| {
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        all[all.len() / 2]
    });
    for ((name, _), (p99, p50, rate)) in kinds.iter().zip(medians) {
        let ratio = p99 / medians[0].0;
        println!(
            "{name:<8} p50 {p50:.0} us  p99 {p99:.0} us  {ratio:.2}x calm  {rate:.0} bodies/s beside it"
        );
    }
}
