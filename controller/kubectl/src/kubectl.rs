//! Runs kubectl as a subprocess: output kept, deadline held, failures with kubectl's own words.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long one call may take; an API server that does not answer must not hang the user.
const DEADLINE: Duration = Duration::from_secs(15);
/// How often an unfinished call is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Most that is kept of kubectl's complaint.
const MAX_COMPLAINT: usize = 2000;

/// A call of kubectl failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubectlError {
    #[error("run {program}: is kubectl installed? (`--kubectl` names another one)")]
    Start { program: PathBuf, source: io::Error },
    #[error("wait for kubectl {call}")]
    Wait { call: String, source: io::Error },
    #[error("kubectl {call} did not end within {limit:?}: is the cluster reachable?")]
    Deadline { call: String, limit: Duration },
    #[error("kubectl {call} failed: {complaint}")]
    Failed { call: String, complaint: String },
}

/// How to call kubectl.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kubectl<'a> {
    pub(crate) program: &'a Path,
    pub(crate) global_flags: &'a [String],
}

impl Kubectl<'_> {
    /// Output of a successful call.
    pub(crate) fn output(&self, arguments: &[&str]) -> Result<Vec<u8>, KubectlError> {
        self.output_within(arguments, DEADLINE)
    }

    fn output_within(&self, arguments: &[&str], limit: Duration) -> Result<Vec<u8>, KubectlError> {
        let call = arguments.join(" ");
        let mut child = Command::new(self.program)
            .args(self.global_flags)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| KubectlError::Start { program: self.program.to_owned(), source })?;
        // Both pipes are emptied all the time, or a talkative kubectl would wait for us.
        let out = child.stdout.take().map(drain);
        let complaint = child.stderr.take().map(drain);
        let status = wait(&mut child, limit)
            .map_err(|source| KubectlError::Wait { call: call.clone(), source })?;
        let Some(status) = status else {
            return Err(KubectlError::Deadline { call, limit });
        };
        let collect = |reader: Option<JoinHandle<Vec<u8>>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        let (out, complaint) = (collect(out), collect(complaint));
        if status.success() {
            return Ok(out);
        }
        let complaint = String::from_utf8_lossy(&complaint);
        let complaint: String = complaint.trim().chars().take(MAX_COMPLAINT).collect();
        let complaint = if complaint.is_empty() { status.to_string() } else { complaint };
        Err(KubectlError::Failed { call, complaint })
    }
}

/// Waits for a child until the limit; kills it then and returns `None`.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Vec<u8>, KubectlError> {
        let kubectl = Kubectl { program: Path::new("/bin/sh"), global_flags: &[] };
        kubectl.output_within(&["-c", script], limit)
    }

    #[test]
    fn output_larger_than_a_pipe_is_read() {
        let out = shell("head -c 300000 /dev/zero; echo noise >&2", DEADLINE).unwrap();
        assert_eq!(out.len(), 300_000);
    }

    #[test]
    fn a_failure_has_kubectls_words() {
        let error = shell("echo 'Error: no such thing' >&2; exit 3", DEADLINE).unwrap_err();
        assert!(error.to_string().ends_with("failed: Error: no such thing"), "{error}");
        let error = shell("exit 3", DEADLINE).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3"), "{error}");
    }

    #[test]
    fn a_call_that_hangs_is_ended() {
        let start = Instant::now();
        let error = shell("exec sleep 60", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, KubectlError::Deadline { .. }));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_missing_kubectl_is_named() {
        let kubectl = Kubectl { program: Path::new("/nowhere/kubectl"), global_flags: &[] };
        let error = kubectl.output(&["version"]).unwrap_err();
        assert!(error.to_string().starts_with("run /nowhere/kubectl"), "{error}");
    }
}
