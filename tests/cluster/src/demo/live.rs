//! What a person sees while the demonstration runs: a small dashboard on a terminal, a line each second elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest_units::Size;

use super::recording::{At, Load, Recording, Shared};
use super::{cpu, memory};

const REDRAW: Duration = Duration::from_millis(500);
const BAR: usize = 40;
/// A line of progress older than this tells nothing about now, in seconds.
const FRESH: f64 = 2.5;

/// Shows the recording while it grows, until it is dropped.
#[derive(Debug)]
pub(super) struct Live {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    pub(super) fn start(shared: &Shared) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (stop, shared) = (Arc::clone(&stop), shared.clone());
            thread::spawn(move || show(&shared, &stop))
        };
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _a_panic_there_hurts_nobody = thread.join();
        }
    }
}

fn show(shared: &Shared, stop: &AtomicBool) {
    let terminal = std::io::stdout().is_terminal();
    let mut drawn = 0_usize;
    for turn in 0_u64.. {
        let last = stop.load(Ordering::Relaxed);
        let lines = {
            let recording = shared.lock();
            let view = View::of(&recording, At::now());
            if terminal { view.dashboard() } else { vec![view.line()] }
        };
        if terminal {
            let up = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
            let text: String = lines.iter().map(|line| format!("\x1b[2K{line}\n")).collect();
            print(&format!("{up}{text}"));
            drawn = lines.len();
        } else if turn % 2 == 0 {
            print(&format!("{}\n", lines.join("\n")));
        }
        if last {
            return;
        }
        thread::sleep(REDRAW);
    }
}

fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody looks any more when the output is closed.
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// The present, as it is shown.
#[derive(Debug, Clone, Default, PartialEq)]
struct View {
    stage: String,
    elapsed: f64,
    clients: u32,
    tps: f64,
    latency_ms: Option<f64>,
    max: Size,
    used: Option<Size>,
    desired: Option<Size>,
    permit: Option<Size>,
    plugged: Option<Size>,
}

impl View {
    fn of(recording: &Recording, now: At) -> Self {
        let fresh = |load: Load| {
            let newest = recording.progress.iter().rev().find(|it| it.load == load)?;
            (now.since(newest.at) < FRESH).then_some(*newest)
        };
        let top = recording.top.last();
        let known = |size: Size| (size != Size::ZERO).then_some(size);
        let open =
            recording.runs.iter().filter(|run| run.failed.is_none() && run.trouble.is_none());
        Self {
            stage: recording.phases.last().map_or_else(String::new, |it| it.stage.to_string()),
            elapsed: now.since(recording.origin()),
            clients: open.map(|run| run.clients).sum(),
            tps: Load::ALL.into_iter().filter_map(fresh).fold(0.0, |sum, it| sum + it.tps),
            latency_ms: fresh(Load::Steady).filter(|it| it.tps > 0.0).map(|it| it.latency_ms),
            max: recording.bounds().map_or(Size::ZERO, |(_, max)| max),
            used: top.map(|it| it.used),
            desired: top.map(|it| it.desired),
            permit: top.and_then(|it| known(it.permit)),
            // The object shows the same as the agent, and earlier.
            plugged: recording.newest().and_then(|it| it.plugged),
        }
    }

    /// One line for a log.
    fn line(&self) -> String {
        let text = |size: Option<Size>| size.map_or_else(|| "-".to_owned(), brief);
        let latency = self.latency_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
        format!(
            "{:>5.0} s  {:<12}  {:>7.1} tps  {latency:>8}  vCPU/MiB: used {:<9}  desired {:<9}  permitted {:<9}  plugged {}",
            self.elapsed,
            self.stage,
            self.tps,
            text(self.used),
            text(self.desired),
            text(self.permit),
            text(self.plugged)
        )
    }

    /// All that is known, with bars.
    fn dashboard(&self) -> Vec<String> {
        let latency = self.latency_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        let mut lines = vec![
            format!("{:<14} {:>5.0} s", self.stage, self.elapsed),
            format!(
                "load           {} clients, {:.1} transactions/s, steady look-up {latency}",
                self.clients, self.tps
            ),
        ];
        let sizes = [
            ("used", self.used),
            ("desired", self.desired),
            ("permitted", self.permit),
            ("plugged", self.plugged),
        ];
        for (what, is_cpu) in [("CPU", true), ("memory", false)] {
            lines.push(String::new());
            for (name, size) in sizes {
                let amount = |size: Size| {
                    if is_cpu { f64::from(size.cpu.0) } else { size.memory.0 as f64 }
                };
                let text = match size {
                    None => "-".to_owned(),
                    Some(size) if is_cpu => cpu(size.cpu),
                    Some(size) => memory(size.memory),
                };
                let share = size.map_or(0.0, |it| amount(it) / amount(self.max).max(1.0));
                lines.push(format!("{what:<6} {name:<10} {} {text}", bar(share)));
            }
        }
        lines
    }
}

/// A size as short as it can be read: CPU and MiB.
fn brief(size: Size) -> String {
    format!("{:.2}/{}", f64::from(size.cpu.0) / 1000.0, size.memory.0 >> 20)
}

fn bar(share: f64) -> String {
    let steps = (0..BAR).filter(|step| share >= (*step as f64 + 0.5) / BAR as f64).count();
    format!("{}{}", "█".repeat(steps), "·".repeat(BAR - steps))
}

#[cfg(test)]
mod tests {
    use guest_units::{Bytes, MilliCpu};

    use super::super::recording::{Progress, Stage, TopSample};
    use super::*;

    fn size(milli: u32, mib: u64) -> Size {
        Size::new(MilliCpu(milli), Bytes::from_mib(mib))
    }

    #[test]
    fn the_present_is_what_came_last_and_is_fresh() {
        let mut recording = Recording::default();
        recording.enter(Stage::CpuHeavy, At(100.0));
        let progress =
            |at, load, tps| Progress { at: At(at), load, tps, latency_ms: 5.0, failed: 0 };
        recording.progress = vec![
            progress(101.0, Load::Memory, 7.0),
            progress(109.0, Load::Cpu, 300.0),
            progress(109.5, Load::Steady, 20.0),
        ];
        let unknown = Size::ZERO;
        recording.top = vec![TopSample {
            at: At(109.0),
            desired: size(1000, 512),
            permit: unknown,
            plugged: size(250, 512),
            used: size(250, 300),
        }];
        let view = View::of(&recording, At(110.0));
        assert_eq!((view.tps, view.latency_ms, view.permit), (320.0, Some(5.0), None));
        let line = view.line();
        assert!(line.contains("10 s  CPU-heavy") && line.contains("desired 1.00/512"), "{line}");
        let dashboard = view.dashboard();
        assert!(
            dashboard
                .iter()
                .any(|line| line.starts_with("memory used") && line.ends_with("300 MiB"))
        );
    }

    #[test]
    fn bars_are_as_long_as_the_share() {
        let filled = |share: f64| bar(share).matches('█').count();
        assert_eq!([0.0, 0.5, 1.0, 7.0].map(filled), [0, 20, 40, 40]);
        assert_eq!(bar(0.3).chars().count(), BAR);
    }
}
