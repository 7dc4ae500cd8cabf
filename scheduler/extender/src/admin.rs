//! The books on request, through a Unix socket in the pod: `kubectl exec … -- autoscale-scheduler dump`.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::core::{Command, Core};

const LIMIT: Duration = Duration::from_secs(5);

/// Listens, in the place of an earlier process.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    UnixListener::bind(path)
}

/// One connection, one dump.
pub(crate) async fn serve(listener: UnixListener, core: Core, shutdown: CancellationToken) {
    loop {
        let mut stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            () = shutdown.cancelled() => return,
        };
        let Ok(dump) = core.ask(|reply| Command::Dump { reply }).await else { return };
        let Ok(mut text) = serde_json::to_vec_pretty(&dump) else { continue };
        text.push(b'\n');
        let _ = timeout(LIMIT, async {
            stream.write_all(&text).await?;
            stream.shutdown().await
        })
        .await;
    }
}

/// The other end.
pub(crate) fn print_dump(path: &Path) -> ExitCode {
    let printed = StdUnixStream::connect(path).and_then(|mut stream| {
        stream.set_read_timeout(Some(LIMIT))?;
        io::copy(&mut stream, &mut io::stdout().lock())
    });
    match printed {
        Ok(bytes) if bytes > 0 => ExitCode::SUCCESS,
        Ok(_) => complain("the scheduler closed the connection without an answer"),
        Err(err) => complain(&format!("ask the scheduler at {}: {err}", path.display())),
    }
}

fn complain(text: &str) -> ExitCode {
    let _ = io::Write::write_all(&mut io::stderr(), format!("{text}\n").as_bytes());
    ExitCode::FAILURE
}
