//! Connections to a back end that stands in for the VM's, and inside the process.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host_protocol::{ConnectError, Endpoint, HybridSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

const LIMIT: Duration = Duration::from_secs(10);

/// A folder of this test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hp-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One connection of a back end: reads the request in one piece, writes `answer`.
async fn back_end(path: &Path, answer: &'static [u8]) -> tokio::task::JoinHandle<String> {
    let listener = UnixListener::bind(path).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test joins its task by hand")]
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 64];
        let length = stream.read(&mut request).await.unwrap();
        stream.write_all(answer).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    })
}

#[tokio::test]
async fn hybrid_sends_one_write_and_keeps_the_payload() {
    let folder = Folder::new("hybrid");
    let path = folder.0.join("vs");
    let served = back_end(&path, b"OK 1073741824\nhello").await;
    let endpoint = Endpoint::Hybrid { socket: HybridSocket::Path(path), port: 25183 };
    let mut stream = endpoint.connect(LIMIT).await.unwrap();
    let mut payload = String::new();
    stream.read_to_string(&mut payload).await.unwrap();
    assert_eq!(payload, "hello");
    assert_eq!(served.await.unwrap(), "CONNECT 25183\n");
}

#[tokio::test]
async fn hybrid_through_a_folder_with_a_long_path() {
    let folder = Folder::new("long");
    let deep = folder.0.join("x".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let short = folder.0.join("vs");
    let served = back_end(&short, b"OK 1\n").await;
    std::fs::rename(&short, deep.join("vs")).unwrap();
    let socket = HybridSocket::in_folder(&deep, "vs").unwrap();
    Endpoint::Hybrid { socket, port: 7 }.connect(LIMIT).await.unwrap();
    assert_eq!(served.await.unwrap(), "CONNECT 7\n");
}

#[tokio::test]
async fn links_are_not_followed() {
    let folder = Folder::new("links");
    let real = folder.0.join("real");
    std::fs::create_dir_all(&real).unwrap();
    let _served = back_end(&real.join("vs"), b"OK 1\n").await;
    symlink(&real, folder.0.join("link")).unwrap();
    let refused = HybridSocket::in_folder(&folder.0.join("link"), "vs");
    assert!(matches!(refused, Err(ConnectError::Folder { .. })), "{refused:?}");

    let other = folder.0.join("other");
    std::fs::create_dir_all(&other).unwrap();
    symlink(real.join("vs"), other.join("vs")).unwrap();
    let socket = HybridSocket::in_folder(&other, "vs").unwrap();
    let refused = Endpoint::Hybrid { socket, port: 7 }.connect(LIMIT).await;
    assert!(matches!(refused, Err(ConnectError::Transport { .. })));
}

#[tokio::test]
async fn an_answer_that_is_not_ok_is_an_error() {
    for (name, answer) in [
        ("refused", b"ERROR\n".as_slice()),
        ("closed", b"".as_slice()),
        ("endless", b"OK 11111111111111111111111111111111111111".as_slice()),
    ] {
        let folder = Folder::new(name);
        let path = folder.0.join("vs");
        let _served = back_end(&path, answer).await;
        let endpoint = Endpoint::Hybrid { socket: HybridSocket::Path(path), port: 1 };
        let ended = endpoint.connect(LIMIT).await;
        assert!(matches!(ended, Err(ConnectError::NobodyListens { .. })), "{name}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let folder = Folder::new("silence");
    let path = folder.0.join("vs");
    let _listener = UnixListener::bind(&path).unwrap();
    let endpoint = Endpoint::Hybrid { socket: HybridSocket::Path(path), port: 1 };
    let ended = endpoint.connect(Duration::from_millis(20)).await;
    assert!(matches!(ended, Err(ConnectError::Deadline { .. })));
}

#[tokio::test]
async fn memory_connects_both_ends() {
    let (endpoint, mut listener) = Endpoint::mem();
    let mut ours = endpoint.connect(LIMIT).await.unwrap();
    let mut theirs = listener.accept().await.unwrap();
    ours.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    theirs.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
    drop(listener);
    assert!(endpoint.connect(LIMIT).await.is_err());
}
