//! Running a subprocess: output into a log file, a deadline, no terminal, and errors that name the command and show its last lines.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::interrupt;

/// How much of a log an error message shows.
const SHOWN_LINES: usize = 30;
const SHOWN_WIDTH: usize = 240;
const POLL: Duration = Duration::from_millis(10);
/// How long a command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// A command to run to its end.
#[derive(Debug)]
pub struct Run {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    removed: Vec<OsString>,
    dir: Option<PathBuf>,
    log: Option<PathBuf>,
    input: Option<Vec<u8>>,
    deadline: Duration,
}

impl Run {
    /// The program is looked up in PATH; the deadline is a minute unless told otherwise.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().into(),
            args: Vec::new(),
            env: Vec::new(),
            removed: Vec::new(),
            dir: None,
            log: None,
            input: None,
            deadline: Duration::from_secs(60),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Does not pass these variables of the environment on.
    #[must_use]
    pub fn without(mut self, names: impl IntoIterator<Item = OsString>) -> Self {
        self.removed.extend(names);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().into());
        self
    }

    /// Appends what the command prints to this file (standard error only, when `output` is used).
    #[must_use]
    pub fn log(mut self, log: impl AsRef<Path>) -> Self {
        self.log = Some(log.as_ref().into());
        self
    }

    /// What the command reads from its standard input (nothing by default).
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// After this long the command is ended and counts as failed.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command as one would type it.
    pub fn line(&self) -> String {
        let mut line = self.program.to_string_lossy().into_owned();
        for arg in &self.args {
            let arg = arg.to_string_lossy();
            let plain = !arg.is_empty() && !arg.contains([' ', '\'', '"', '\n', '$']);
            let _infallible = if plain { write!(line, " {arg}") } else { write!(line, " '{arg}'") };
        }
        line
    }

    /// Runs the command; anything but exit code 0 is an error.
    pub fn status(&self) -> Result<()> {
        let mut private = None;
        let (out, start) = self.sink(&mut private)?;
        let errors = out.try_clone().context("share the log file")?;
        let status = self.wait(self.spawn(Stdio::from(out), Stdio::from(errors))?)?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(&status.to_string(), &self.said(private, start)))
    }

    /// Runs the command and returns its standard output as text.
    pub fn output(&self) -> Result<String> {
        let (text, failure) = self.captured()?;
        failure.map_or(Ok(text), Err)
    }

    /// Runs the command and returns its standard output, whatever its exit code.
    pub fn output_whatever_the_end(&self) -> Result<String> {
        Ok(self.captured()?.0)
    }

    /// Runs the command and says only whether it ended with exit code 0.
    pub fn succeeds(&self) -> bool {
        self.captured().is_ok_and(|(_, failure)| failure.is_none())
    }

    fn captured(&self) -> Result<(String, Option<anyhow::Error>)> {
        let mut private = None;
        let (errors, start) = self.sink(&mut private)?;
        let mut child = self.spawn(Stdio::piped(), Stdio::from(errors))?;
        let mut pipe = child.stdout.take().context("the command's output is a pipe")?;
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| bytes)
        });
        let status = self.wait(child)?;
        let bytes = reader
            .join()
            .map_err(|_| anyhow!("the thread that reads the output of {} broke", self.line()))?
            .with_context(|| format!("read the output of {}", self.line()))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let failure = (!status.success()).then(|| {
            let said = format!("{}{}", self.said(private, start), last_lines(&text, SHOWN_LINES));
            self.failure(&status.to_string(), &said)
        });
        Ok((text, failure))
    }

    /// Where the command's messages go, and from which byte on they are its own.
    fn sink(&self, private: &mut Option<File>) -> Result<(File, u64)> {
        let Some(log) = &self.log else {
            let file = unnamed_file()?;
            *private = Some(file.try_clone().context("share the output file")?);
            return Ok((file, 0));
        };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open the log {}", log.display()))?;
        writeln!(file, "$ {}", self.line())
            .with_context(|| format!("write to the log {}", log.display()))?;
        let start = file.metadata().map_or(0, |meta| meta.len());
        Ok((file, start))
    }

    fn said(&self, private: Option<File>, start: u64) -> String {
        let file = private.or_else(|| self.log.as_ref().and_then(|log| File::open(log).ok()));
        let mut bytes = Vec::new();
        if let Some(mut file) = file {
            let _unreadable_is_empty =
                file.seek(SeekFrom::Start(start)).and_then(|_| file.read_to_end(&mut bytes));
        }
        last_lines(&String::from_utf8_lossy(&bytes), SHOWN_LINES)
    }

    fn failure(&self, how: &str, said: &str) -> anyhow::Error {
        let log = self
            .log
            .as_ref()
            .map_or_else(String::new, |log| format!("\n  (whole log: {})", log.display()));
        anyhow!("{} failed ({how})\n{said}{log}", self.line())
    }

    fn spawn(&self, out: Stdio, errors: Stdio) -> Result<Child> {
        let mut command = Command::new(&self.program);
        for name in &self.removed {
            command.env_remove(name);
        }
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        // A group of its own: a stop reaches the whole tree, and Ctrl-C reaches this tool first.
        command.process_group(0).stdout(out).stderr(errors);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.stdin(match &self.input {
            Some(input) => {
                let mut file = unnamed_file()?;
                file.write_all(input).context("write the command's input")?;
                file.rewind().context("rewind the command's input")?;
                Stdio::from(file)
            }
            None => Stdio::null(),
        });
        command.spawn().with_context(|| format!("start {}", self.program.to_string_lossy()))
    }

    fn wait(&self, mut child: Child) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) =
                child.try_wait().with_context(|| format!("wait for {}", self.line()))?
            {
                return Ok(status);
            }
            let late = started.elapsed() > self.deadline;
            if late || interrupt::interrupted() {
                end(&mut child);
                interrupt::check().with_context(|| format!("while running {}", self.line()))?;
                bail!("{} did not end within {:?}", self.line(), self.deadline);
            }
            thread::sleep(POLL);
        }
    }
}

/// Ends a command and all that it started.
fn end(child: &mut Child) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    let _gone = kill_process_group(group, Signal::TERM);
    let asked = Instant::now();
    while asked.elapsed() < GRACE {
        if matches!(child.try_wait(), Ok(Some(_))) {
            break;
        }
        thread::sleep(POLL);
    }
    let _gone = kill_process_group(group, Signal::KILL);
    let _reaped = child.wait();
}

/// A file without a name, in memory: it cannot fill a pipe, and it is gone with its last user.
fn unnamed_file() -> Result<File> {
    let file = rustix::fs::memfd_create("neonvm-cluster", rustix::fs::MemfdFlags::CLOEXEC)
        .context("make a file in memory")?;
    Ok(File::from(file))
}

/// The last lines of a text, indented for an error message.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(count);
    lines[first..].iter().fold(String::new(), |mut shown, line| {
        let short: String = line.chars().take(SHOWN_WIDTH).collect();
        let _infallible = writeln!(shown, "  | {short}");
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_passed_on_unless_removed() {
        let name = "CARGO_PKG_NAME";
        let told = |run: Run| run.output().unwrap().contains(name);
        assert!(told(Run::new("env")));
        assert!(!told(Run::new("env").without([name.into()])));
    }

    #[test]
    fn output_is_returned_as_text() {
        assert_eq!(Run::new("echo").args(["one", "two"]).output().unwrap(), "one two\n");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(Run::new("cat").input("text").output().unwrap(), "text");
    }

    #[test]
    fn a_failure_names_the_command_and_its_last_words() {
        let err = Run::new("sh").args(["-c", "echo broken >&2; exit 3"]).status().unwrap_err();
        let text = format!("{err:#}");
        assert!(text.contains("sh -c") && text.contains("broken"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let err = Run::new("no-such-program-here").status().unwrap_err();
        assert!(format!("{err:#}").contains("no-such-program-here"));
    }

    #[test]
    fn a_command_beyond_its_deadline_is_ended() {
        let started = Instant::now();
        let run = Run::new("sleep").arg("60").deadline(Duration::from_millis(50));
        assert!(run.status().unwrap_err().to_string().contains("did not end"));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn only_the_end_of_a_long_text_is_shown() {
        let text = (0..100).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(last_lines(&text, 2), "  | 98\n  | 99\n");
    }
}
