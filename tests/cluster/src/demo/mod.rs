//! The demonstration: a Postgres VM under a load that rises and falls, watched, judged, and told in a report.

mod checks;
mod feed;
mod live;
mod load;
mod logs;
mod recording;
mod report;
mod run;
mod session;
mod svg;
mod timeline;
mod watch;

use guest_units::{Bytes, MilliCpu, Size};

pub use run::{Ending, Options, run};

/// The VM, and the Service in front of it.
const VM: &str = "demo";
const NAMESPACE: &str = "default";
/// The VM in the scheduler's books.
const KEY: &str = "default/demo";
/// The pod that the load comes from.
const CLIENT: &str = "demo-client";

/// How psql is asked something whose answer a program reads. Where it connects to stands in the pod's environment.
fn sql_words() -> [&'static str; 5] {
    ["-X", "-q", "-A", "-t", "-vON_ERROR_STOP=1"]
}

/// CPU for people.
fn cpu(cpu: MilliCpu) -> String {
    format!("{:.2} vCPU", f64::from(cpu.0) / 1000.0)
}

/// Memory for people.
fn memory(memory: Bytes) -> String {
    format!("{} MiB", memory.0 >> 20)
}

/// A size for people.
fn shown(size: Size) -> String {
    format!("{} / {}", cpu(size.cpu), memory(size.memory))
}
