//! The connection, both ends in one process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use guest_protocol::{
    Ask, AskReason, Closed, ErrorBody, ErrorCode, Generation, HandshakeError, KeeperGuest,
    KeeperHost, KeeperRequest, KeeperResponse, KeeperState, LinkError, LinkOptions, Received,
    ScalerGuest, ScalerHost, ScalerNotify, ScalerRequest, ScalerResponse, Session, accept, dial,
};
use guest_units::{Bytes, MilliCpu, Size};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(10);
const BOOT: &str = "3d8c";

type Pair = (Session<DuplexStream, ScalerHost>, Session<DuplexStream, ScalerGuest>);

async fn pair(host: LinkOptions, guest: LinkOptions) -> Pair {
    let (here, there) = duplex(4096);
    let (host, guest) = tokio::join!(dial(here, host, LIMIT), accept(there, BOOT, guest, LIMIT));
    (host.unwrap(), guest.unwrap())
}

#[expect(clippy::disallowed_methods, reason = "a test waits for its tasks itself")]
fn spawn<F: Future<Output = Closed> + Send + 'static>(driver: F) -> JoinHandle<Closed> {
    tokio::spawn(driver)
}

fn size(cpu: u32, mib: u64) -> Size {
    Size::new(MilliCpu(cpu), Bytes::from_mib(mib))
}

fn ask(seq: u64) -> ScalerNotify {
    ScalerNotify::Ask(Ask { seq, want: size(1000, 1024), reason: AskReason::MemorySlope })
}

fn may_shrink() -> ScalerRequest {
    ScalerRequest::MayShrink {
        generation: Generation::from(7),
        from: size(2000, 1024),
        to: size(1000, 512),
    }
}

#[tokio::test]
async fn requests_are_answered_and_notifies_arrive() {
    let (host, guest) = pair(LinkOptions::default(), LinkOptions::default()).await;
    assert_eq!(host.welcome.boot_id.as_str(), BOOT);
    let (_h, _g) = (spawn(host.driver.run()), spawn(guest.driver.run()));
    let (mut from_host, mut from_guest) = (guest.incoming, host.incoming);
    let answering = async {
        let Some(Received::Request(request, responder)) = from_host.next().await else {
            panic!("no request")
        };
        assert_eq!(request, may_shrink());
        let veto = ScalerResponse::Veto { least: size(1000, 800), reason: "in use".into() };
        responder.respond(veto).unwrap();
        guest.link.notify(ask(1)).unwrap();
        let Some(Received::Request(_, responder)) = from_host.next().await else {
            panic!("no second request")
        };
        responder.refuse(ErrorBody::new(ErrorCode::Stale, "newer seen")).unwrap();
        // The third is dropped without an answer.
        let _dropped = from_host.next().await;
    };
    let asking = async {
        let answer = host.link.request(may_shrink(), LIMIT).await.unwrap();
        assert!(matches!(answer, ScalerResponse::Veto { least, .. } if least == size(1000, 800)));
        let Some(Received::Notify(notify)) = from_guest.next().await else { panic!("no notify") };
        assert_eq!(notify, ask(1));
        let refused = host.link.request(may_shrink(), LIMIT).await;
        assert!(
            matches!(refused, Err(LinkError::Refused { error }) if error.code == ErrorCode::Stale)
        );
        let dropped = host.link.request(may_shrink(), LIMIT).await;
        assert!(
            matches!(dropped, Err(LinkError::Refused { error }) if error.code == ErrorCode::Failed)
        );
    };
    tokio::join!(answering, asking);
}

#[tokio::test]
async fn the_keeper_uses_the_same_machinery() {
    let (here, there) = duplex(4096);
    let (host, guest) = tokio::join!(
        dial::<KeeperHost, _>(here, LinkOptions::default(), LIMIT),
        accept::<KeeperGuest, _>(there, BOOT, LinkOptions::default(), LIMIT)
    );
    let (host, mut guest) = (host.unwrap(), guest.unwrap());
    let (_h, _g) = (spawn(host.driver.run()), spawn(guest.driver.run()));
    let state = KeeperState { cpus_present: u32::MAX, ..KeeperState::default() };
    let answering = async {
        let Some(Received::Request(KeeperRequest::State {}, responder)) =
            guest.incoming.next().await
        else {
            panic!("no request")
        };
        responder.respond(KeeperResponse::State(state)).unwrap();
    };
    let (answer, ()) = tokio::join!(host.link.request(KeeperRequest::State {}, LIMIT), answering);
    let KeeperResponse::State(state) = answer.unwrap() else { panic!("no state") };
    assert_eq!(state.cpus_present, 4096, "an absurd claim is brought down");
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_at_its_deadline_and_a_late_answer_is_dropped() {
    let (host, mut guest) = pair(LinkOptions::default(), LinkOptions::default()).await;
    let (_h, _g) = (spawn(host.driver.run()), spawn(guest.driver.run()));
    let late = host.link.request(may_shrink(), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(LinkError::Deadline { .. })));
    let Some(Received::Request(_, responder)) = guest.incoming.next().await else {
        panic!("no request")
    };
    responder.respond(ScalerResponse::Fine {}).unwrap();
    let answering = async {
        let Some(Received::Request(_, responder)) = guest.incoming.next().await else {
            panic!("no request")
        };
        let confirmed =
            ScalerResponse::Confirmed { cpus_online: 1, memory_total: Bytes::from_gib(1) };
        responder.respond(confirmed).unwrap();
    };
    let (answer, ()) = tokio::join!(host.link.request(may_shrink(), LIMIT), answering);
    assert!(matches!(answer, Ok(ScalerResponse::Confirmed { .. })), "not the late one");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_notifies_is_cut_and_counted() {
    let options = LinkOptions { notifies_per_second: 10, queue: 64, ..LinkOptions::default() };
    let (mut host, guest) = pair(options, LinkOptions { queue: 512, ..options }).await;
    let (_h, _g) = (spawn(host.driver.run()), spawn(guest.driver.run()));
    for seq in 0..500 {
        guest.link.notify(ask(seq)).unwrap();
    }
    while host.link.dropped_notifies() < 490 {
        tokio::task::yield_now().await;
    }
    let mut seen = 0;
    while let Ok(Some(Received::Notify(_))) =
        tokio::time::timeout(Duration::from_millis(1), host.incoming.next()).await
    {
        seen += 1;
    }
    assert_eq!((seen, host.link.dropped_notifies()), (10, 490));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_the_connection() {
    let options = LinkOptions { idle: Some(Duration::from_secs(5)), ..LinkOptions::default() };
    let (host, guest) = pair(options, LinkOptions::default()).await;
    let (closed, _g) = (spawn(host.driver.run()), spawn(guest.driver.run()));
    let pending = host.link.request(may_shrink(), Duration::from_secs(60));
    assert!(matches!(pending.await, Err(LinkError::Closed)), "pending requests fail with it");
    assert!(matches!(closed.await.unwrap(), Closed::Idle { .. }));
    assert!(matches!(host.link.request(may_shrink(), LIMIT).await, Err(LinkError::Closed)));
}

#[tokio::test]
async fn dropping_the_link_ends_both_ends() {
    let (host, guest) = pair(LinkOptions::default(), LinkOptions::default()).await;
    let (h, g) = (spawn(host.driver.run()), spawn(guest.driver.run()));
    drop(host.link);
    assert!(matches!(h.await.unwrap(), Closed::Here));
    assert!(matches!(g.await.unwrap(), Closed::Peer));
}

/// Greets as a guest, then says what it likes.
async fn raw_guest(mut stream: DuplexStream, bytes: &[u8]) -> DuplexStream {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await.unwrap();
    let mut hello = vec![0; usize::try_from(u32::from_be_bytes(prefix)).unwrap()];
    stream.read_exact(&mut hello).await.unwrap();
    let welcome = br#"{"welcome":{"role":"scaler","version":1,"boot_id":"x"}}"#;
    stream.write_all(&u32::try_from(welcome.len()).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(welcome).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let frames: [&[u8]; 5] = [
        b"\x00\x00\x00\x02{]",
        b"\x00\x00\x00\x02{}",
        b"\x7f\xff\xff\xff",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x1a{\"notify\":{\"request\":{}}}  ",
    ];
    for bytes in frames {
        let (here, there) = duplex(4096);
        let options = LinkOptions::default();
        let (host, _guest) =
            tokio::join!(dial::<ScalerHost, _>(here, options, LIMIT), raw_guest(there, bytes));
        let host = host.unwrap();
        let closed = host.driver.run().await;
        assert_eq!(closed.label(), "malformed", "{bytes:?}: {closed}");
    }
}

#[tokio::test]
async fn an_unknown_id_and_unknown_fields_are_harmless() {
    let message = br#"{"id":99,"response":{"fine":{}},"new":1}"#;
    let mut bytes = u32::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    let (here, there) = duplex(4096);
    let (host, guest) = tokio::join!(
        dial::<ScalerHost, _>(here, LinkOptions::default(), LIMIT),
        raw_guest(there, &bytes)
    );
    drop(guest);
    let host = host.unwrap();
    assert!(matches!(host.driver.run().await, Closed::Peer));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_any_kind_has_to_wait() {
    let message = br#"{"id":99,"response":{"fine":{}}}"#;
    let mut frame = u32::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    let options = LinkOptions { frames_per_second: 100, ..LinkOptions::default() };
    let (here, there) = duplex(4096);
    let (host, guest) =
        tokio::join!(dial::<ScalerHost, _>(here, options, LIMIT), raw_guest(there, &frame));
    let host = host.unwrap();
    let reading = spawn(host.driver.run());
    let begun = tokio::time::Instant::now();
    let mut guest = guest;
    for _ in 0..1000 {
        guest.write_all(&frame).await.unwrap();
    }
    drop(guest);
    assert!(matches!(reading.await.unwrap(), Closed::Peer));
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(8) && took <= Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn the_wrong_role_is_told_so() {
    let (here, there) = duplex(4096);
    let (host, guest) = tokio::join!(
        dial::<KeeperHost, _>(here, LinkOptions::default(), LIMIT),
        accept::<ScalerGuest, _>(there, BOOT, LinkOptions::default(), LIMIT)
    );
    assert!(matches!(host.err(), Some(HandshakeError::Refused { .. })));
    assert!(matches!(guest.err(), Some(HandshakeError::Role { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_does_not_hold_the_handshake() {
    let (here, _there) = duplex(4096);
    let silent = accept::<ScalerGuest, _>(here, BOOT, LinkOptions::default(), LIMIT).await;
    assert!(matches!(silent.err(), Some(HandshakeError::Deadline { .. })));
}
