//! What the tool is doing, for a person and for a log: a line per step with its time and that of the last time, and a sign of life.

use std::fs::{self, File};
use std::io::{IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::command::last_lines;
use crate::interrupt;

/// How often a step that takes long says that it lives.
const ON_TERMINAL: Duration = Duration::from_secs(2);
const IN_LOG: Duration = Duration::from_secs(30);
/// A step is announced before it ends only when it lasted longer than this the last time (or never ran).
const SHORT: Duration = Duration::from_secs(2);
const FAILURE_LINES: usize = 30;
const TAIL_WIDTH: usize = 90;
const TAIL_BYTES: u64 = 8192;

/// The progress of one run; clones share the numbering, steps may run side by side.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cache: Cache,
    total: AtomicUsize,
    begun: AtomicUsize,
    terminal: bool,
    started: Instant,
    /// Whether the terminal's last line is a sign of life that the next line overwrites.
    open_line: Mutex<bool>,
}

/// A step under way.
#[derive(Debug)]
pub struct Step {
    log: PathBuf,
    reused: AtomicBool,
}

impl Step {
    /// The file to which the step's commands write.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Says that there was nothing to do: the result of an earlier run is used.
    pub fn reused(&self) {
        self.reused.store(true, Ordering::Relaxed);
    }

    /// Adds a line to the step's log; it becomes the sign of life, too.
    pub fn say(&self, line: &str) {
        let file = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        // A log that cannot be written must not fail the work that it describes.
        let _best_effort = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}

impl Progress {
    /// Progress through `total` steps; times and logs are kept in the cache.
    pub fn new(cache: &Cache, total: usize) -> Self {
        Self(Arc::new(Shared {
            cache: cache.clone(),
            total: AtomicUsize::new(total),
            begun: AtomicUsize::new(0),
            terminal: std::io::stderr().is_terminal(),
            started: Instant::now(),
            open_line: Mutex::new(false),
        }))
    }

    /// The run turned out to have more steps.
    pub fn expect_more(&self, steps: usize) {
        self.0.total.fetch_add(steps, Ordering::Relaxed);
    }

    /// Time since the run began.
    pub fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Prints a line that is no step.
    pub fn note(&self, line: &str) {
        self.print(line, false);
    }

    /// Runs one step: announces it when it is a long one, shows that it lives, says how long it took.
    pub fn step<T>(&self, name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let number = self.0.begun.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.total.fetch_max(number, Ordering::Relaxed);
        let head = || format!("[{number}/{}] {name}", self.0.total.load(Ordering::Relaxed));
        let log = self.0.cache.log(name);
        File::create(&log).with_context(|| format!("start the log {}", log.display()))?;
        let step = Step { log, reused: AtomicBool::new(false) };
        let last = self.last_time(name);
        let begun = Instant::now();
        let result = thread::scope(|scope| {
            let (stop, stopped) = mpsc::channel::<()>();
            let (head, step) = (&head, &step);
            scope.spawn(move || self.heartbeat(head, step, last, begun, &stopped));
            let result = work(step);
            drop(stop);
            result
        });
        self.finish(&head(), name, &step, last, begun.elapsed(), result)
    }

    fn finish<T>(
        &self,
        head: &str,
        name: &str,
        step: &Step,
        last: Option<Duration>,
        took: Duration,
        result: Result<T>,
    ) -> Result<T> {
        match &result {
            Ok(_) if step.reused.load(Ordering::Relaxed) => {
                self.print(&format!("{head}: nothing to do"), false);
            }
            Ok(_) => {
                self.remember(name, took)?;
                self.print(&format!("{head}: {}{}", seconds(took), last_words(last)), false);
            }
            Err(_) if interrupt::interrupted() => {
                self.print(&format!("{head}: stopped after {}", seconds(took)), false);
            }
            Err(_) => {
                self.print(&format!("{head}: FAILED after {}", seconds(took)), false);
                let text = fs::read_to_string(&step.log).unwrap_or_default();
                if !text.is_empty() {
                    self.print(last_lines(&text, FAILURE_LINES).trim_end(), false);
                    self.print(&format!("  whole log: {}", step.log.display()), false);
                }
            }
        }
        result
    }

    fn heartbeat(
        &self,
        head: &dyn Fn() -> String,
        step: &Step,
        last: Option<Duration>,
        begun: Instant,
        stopped: &mpsc::Receiver<()>,
    ) {
        let every = if self.0.terminal { ON_TERMINAL } else { IN_LOG };
        // A step that is known to be long is announced at once, an unknown one after a moment.
        let first = match last {
            Some(time) if time > SHORT => Duration::from_millis(50),
            Some(_) => every,
            None => Duration::from_millis(700),
        };
        let mut wait = first;
        let mut announced = self.0.terminal;
        while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            wait = every;
            if !announced {
                announced = true;
                self.print(&format!("{} ...{}", head(), last_words(last)), false);
                continue;
            }
            let tail = tail(&step.log);
            let took = seconds(begun.elapsed());
            self.print(
                &format!("{head}: {took} so far{}{tail}", last_words(last), head = head()),
                true,
            );
        }
    }

    fn print(&self, line: &str, passing: bool) {
        let mut open = self.0.open_line.lock().unwrap_or_else(PoisonError::into_inner);
        let back = if *open { "\r\x1b[2K" } else { "" };
        let passing = passing && self.0.terminal;
        let end = if passing { "" } else { "\n" };
        // Nobody is left to be told when standard error is closed.
        let _closed = write!(std::io::stderr().lock(), "{back}{line}{end}");
        *open = passing;
    }

    fn time_file(&self, name: &str) -> PathBuf {
        self.0.cache.log(name).with_extension("millis")
    }

    fn last_time(&self, name: &str) -> Option<Duration> {
        let text = fs::read_to_string(self.time_file(name)).ok()?;
        text.trim().parse().ok().map(Duration::from_millis)
    }

    fn remember(&self, name: &str, took: Duration) -> Result<()> {
        let path = self.time_file(name);
        fs::write(&path, took.as_millis().to_string())
            .with_context(|| format!("write {}", path.display()))
    }
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} s", time.as_secs())
    }
}

fn last_words(last: Option<Duration>) -> String {
    last.map_or_else(String::new, |last| format!(" (last time {})", seconds(last)))
}

/// The last line of a log, shortened, as a sign of what the step is at.
fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) else {
        return String::new();
    };
    let shown: String = line.trim().chars().filter(|c| !c.is_control()).take(TAIL_WIDTH).collect();
    format!(" - {shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exact_when_short() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(412)), "412 s");
        assert_eq!(last_words(Some(Duration::from_secs(41))), " (last time 41 s)");
        assert_eq!(last_words(None), "");
    }

    #[test]
    fn a_step_remembers_its_time_and_a_reused_one_does_not() {
        let dir = std::env::temp_dir().join(format!("neonvm-progress-{}", std::process::id()));
        let cache = Cache::at(&dir).unwrap();
        let progress = Progress::new(&cache, 2);
        progress
            .step("worked", |step| {
                step.say("half way");
                Ok(())
            })
            .unwrap();
        progress
            .step("idle", |step| {
                step.reused();
                Ok(())
            })
            .unwrap();
        assert!(progress.last_time("worked").is_some());
        assert_eq!(progress.last_time("idle"), None);
        assert_eq!(tail(&cache.log("worked")), " - half way");
        fs::remove_dir_all(dir).unwrap();
    }
}
