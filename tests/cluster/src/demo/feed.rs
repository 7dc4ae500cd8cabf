//! Long-lived kubectl children: streams of JSON values that come back when they break, and lines that are asked for and answered.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::recording::At;
use crate::cluster::Cluster;
use crate::interrupt;
use crate::process;

/// Before a stream that ended is begun again.
const PAUSE: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(50);

/// A kubectl command for a child that lives long. In a process group of its own: Ctrl-C is for this program.
pub(super) fn kubectl(cluster: &Cluster, words: &[&str]) -> Command {
    let mut command = Command::new(cluster.program("kubectl"));
    let (mark, ours) = process::mark(cluster.layout());
    command.env(mark, ours).env("KUBECONFIG", cluster.kubeconfig());
    command.args(words).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// A stream of JSON values from a command that is started again whenever it ends; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Feed {
    stop: Arc<AtomicBool>,
    child: Arc<Mutex<Option<Child>>>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Hands every value to `each`. With `tick`, an empty line is written to the command so often: its cue for the next value.
    pub(super) fn start(
        command: impl Fn() -> Result<Command> + Send + 'static,
        tick: Option<Duration>,
        mut each: impl FnMut(At, &Value) + Send + 'static,
    ) -> Self {
        let (stop, child) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let thread = {
            let (stop, child) = (Arc::clone(&stop), Arc::clone(&child));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A command that cannot be built now (no such pod) may be later; the checks count what came.
                    if let Ok(command) = command() {
                        once(command, tick, &stop, &child, &mut each);
                    }
                    thread::sleep(PAUSE);
                }
            })
        };
        Self { stop, child, thread: Some(thread) }
    }
}

fn once(
    mut command: Command,
    tick: Option<Duration>,
    stop: &Arc<AtomicBool>,
    place: &Mutex<Option<Child>>,
    each: &mut impl FnMut(At, &Value),
) {
    if tick.is_some() {
        command.stdin(Stdio::piped());
    }
    let Ok(mut child) = command.spawn() else { return };
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    place.lock().unwrap_or_else(PoisonError::into_inner).replace(child);
    let cues = stdin.zip(tick).map(|(stdin, tick)| {
        let stop = Arc::clone(stop);
        thread::spawn(move || give_cues(stdin, tick, &stop))
    });
    if let Some(stdout) = stdout {
        let values = serde_json::Deserializer::from_reader(BufReader::new(stdout));
        for value in values.into_iter::<Value>().map_while(Result::ok) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            each(At::now(), &value);
        }
    }
    end(place);
    if let Some(cues) = cues {
        let _a_panic_there_ends_the_feed_only = cues.join();
    }
}

fn give_cues(mut stdin: ChildStdin, tick: Duration, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) && stdin.write_all(b"\n").is_ok() {
        thread::sleep(tick);
    }
}

fn end(place: &Mutex<Option<Child>>) {
    if let Some(mut child) = place.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _already_gone = child.kill();
        let _collected = child.wait();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // More than once: the thread may be just about to start another child.
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            end(&self.child);
            thread::sleep(POLL);
        }
        if let Some(thread) = self.thread.take() {
            let _a_panic_there_loses_samples_only = thread.join();
        }
    }
}

/// A child whose output lines are read one by one, and that may be asked things on its input.
#[derive(Debug)]
pub(super) struct Lines {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Lines {
    /// Starts the command with its input open.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the command's output is a pipe")?;
        let (sender, lines) = mpsc::channel();
        // Ends with the child's output.
        let _reader = thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader.by_ref().read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    /// Writes a line.
    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the input is closed")?;
        stdin.write_all(format!("{line}\n").as_bytes()).context("write to the command")
    }

    /// The next line; nothing when the output has ended.
    pub(super) fn next(&self, limit: Duration) -> Result<Option<String>> {
        let begun = Instant::now();
        loop {
            match self.lines.recv_timeout(POLL) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => interrupt::check()?,
            }
            if begun.elapsed() > limit {
                bail!("no line within {limit:?}");
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.stdin.take();
        let _already_gone = self.child.kill();
        let _collected = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        command
    }

    fn wait(mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing came");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_feed_hands_over_values_and_begins_again() {
        let seen = Arc::new(Mutex::new(0_u64));
        let count = Arc::clone(&seen);
        let feed = Feed::start(
            || Ok(shell("while read -r _; do printf '{\\n\"n\": 1}'; break; done")),
            Some(Duration::from_millis(5)),
            move |_, value| *count.lock().unwrap() += value["n"].as_u64().unwrap(),
        );
        wait(|| *seen.lock().unwrap() >= 2);
        drop(feed);
    }

    #[test]
    fn a_feed_without_end_ends_when_dropped() {
        let feed = Feed::start(|| Ok(shell("exec sleep 60")), None, |_, _| {});
        thread::sleep(Duration::from_millis(50));
        let begun = Instant::now();
        drop(feed);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn lines_are_asked_for_and_answered() {
        let mut lines = Lines::start(shell("while read -r x; do echo \"got $x\"; done")).unwrap();
        lines.tell("1").unwrap();
        assert_eq!(lines.next(Duration::from_secs(20)).unwrap().unwrap(), "got 1");
        lines.stdin.take();
        assert_eq!(lines.next(Duration::from_secs(20)).unwrap(), None);
    }
}
