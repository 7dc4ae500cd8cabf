//! Children of the pod's first process: starting them, and collecting those that ended.
//!
//! As process 1 the runner also inherits orphans, for example of `kubectl exec`. One place waits for *any*
//! child and passes the result on to whoever started it; nothing else in this program may wait for children.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, umask, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("start {program}")]
    Start { program: String, source: io::Error },
    #[error("listen to the ends of children")]
    Listen { source: io::Error },
    #[error("{program} ended with {ended}")]
    Ended { program: String, ended: Ended },
    #[error("nobody collects ended children any more")]
    NotCollected,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with this code.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

impl Ended {
    /// The exit code that passes the result on, as shells write it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(number) => 128u8.saturating_add(number),
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "code {code}"),
            Self::Signaled(number) => write!(f, "signal {number}"),
        }
    }
}

/// A started process.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    pid: Pid,
    ended: oneshot::Receiver<Ended>,
    /// Its standard output.
    pub(crate) stdout: Option<OwnedFd>,
    /// Its standard error.
    pub(crate) stderr: Option<OwnedFd>,
}

impl Child {
    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Result<Ended, ProcessError> {
        (&mut self.ended).await.map_err(|_| ProcessError::NotCollected)
    }

    /// Ends it at once, if it has not ended yet.
    pub(crate) fn kill(&mut self) {
        // As long as its end was not told, its number cannot belong to another process.
        if matches!(self.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty))
            && let Err(err) = kill_process(self.pid, Signal::KILL)
            && err != Errno::SRCH
        {
            tracing::warn!(process = self.name, error = %err, "cannot end a process");
        }
    }
}

/// Starts processes and collects those that ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children(Arc<Mutex<HashMap<Pid, oneshot::Sender<Ended>>>>);

impl Children {
    /// Starts a program whose files get the permissions that `mask` leaves. Its outputs are pipes.
    pub(crate) fn start(
        &self,
        program: &str,
        arguments: &[String],
        mask: Mode,
    ) -> Result<Child, ProcessError> {
        let failed = |source| ProcessError::Start { program: program.to_owned(), source };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Under the lock: its end must not be collected before it is known, and the mask is the process's.
        let mut running = self.running();
        let before = umask(mask);
        let spawned = command.spawn();
        umask(before);
        let mut child = spawned.map_err(failed)?;
        let (tell, ended) = oneshot::channel();
        let pid = Pid::from_child(&child);
        running.insert(pid, tell);
        Ok(Child {
            name: program.to_owned(),
            pid,
            ended,
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
        })
    }

    /// Runs a program to its successful end.
    pub(crate) async fn run(
        &self,
        program: &str,
        arguments: &[String],
    ) -> Result<(), ProcessError> {
        let mut child = self.start(program, arguments, Mode::from_raw_mode(0o077))?;
        let copied = [child.stdout.take(), child.stderr.take()]
            .into_iter()
            .flatten()
            .map(|output| crate::console::log_lines(program.to_owned(), output));
        let mut copied = copied.collect::<tokio::task::JoinSet<()>>();
        let ended = child.ended().await?;
        while copied.join_next().await.is_some() {}
        if ended == Ended::Exited(0) {
            Ok(())
        } else {
            Err(ProcessError::Ended { program: program.to_owned(), ended })
        }
    }

    /// Starts to collect; from the return on no end is missed.
    pub(crate) fn collect(
        &self,
        shutdown: CancellationToken,
    ) -> Result<impl Future<Output = ()> + use<>, ProcessError> {
        let mut ends =
            signal(SignalKind::child()).map_err(|source| ProcessError::Listen { source })?;
        let children = self.clone();
        Ok(async move {
            loop {
                children.collect_all();
                tokio::select! {
                    _ = ends.recv() => {}
                    () = shutdown.cancelled() => return,
                }
            }
        })
    }

    fn collect_all(&self) {
        let mut running = self.running();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let number = |value: i32| u8::try_from(value).unwrap_or(u8::MAX);
            let ended = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ended::Exited(number(code)),
                (None, Some(signal)) => Ended::Signaled(number(signal)),
                (None, None) => continue, // only stopped
            };
            if let Some(tell) = running.remove(&pid) {
                let _not_awaited = tell.send(ended);
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<Ended>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(script: &str) -> Vec<String> {
        vec!["-c".to_owned(), script.to_owned()]
    }

    /// One test: waiting for any child disturbs every other test that starts processes at the same time.
    #[tokio::test]
    #[ignore = "waits for every child of the test process; run by the test below, alone"]
    async fn alone() {
        let children = Children::default();
        let shutdown = CancellationToken::new();
        let mut collecting = tokio::task::JoinSet::new();
        collecting.spawn(children.collect(shutdown.clone()).unwrap());
        let mask = Mode::from_raw_mode(0o007);
        for (script, ended, code) in [
            ("exit 0", Ended::Exited(0), 0),
            ("exit 64", Ended::Exited(64), 64),
            ("kill -9 $$", Ended::Signaled(9), 137),
        ] {
            let mut child = children.start("sh", &words(script), mask).unwrap();
            let found = child.ended().await.unwrap();
            assert_eq!((found, found.code()), (ended, code), "{script}");
            child.kill(); // of an ended one: nothing
        }
        let mut child = children.start("sleep", &["1000".to_owned()], mask).unwrap();
        child.kill();
        assert_eq!(child.ended().await.unwrap(), Ended::Signaled(9));

        children.run("sh", &words("test $(umask) = 0077")).await.unwrap();
        let failed = children.run("sh", &words("echo no >&2; exit 3")).await.unwrap_err();
        assert_eq!(failed.to_string(), "sh ended with code 3");
        assert!(children.start("/nonexistent", &[], mask).is_err());
        shutdown.cancel();
        collecting.join_all().await;
    }

    #[test]
    fn in_a_process_of_its_own() {
        let test = std::env::current_exe().unwrap();
        let output = Command::new(test)
            .args(["--ignored", "--exact", "process::tests::alone"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
