//! A recording of a demonstration in which all went well, made by hand, for tests to spoil.

use guest_units::{Bytes, MilliCpu, Size};

use super::super::recording::{
    Amount, At, Decision, Identity, LedgerSample, Load, LoadRun, NodeBooks, Phase, Progress,
    Recording, Stage, TopSample, Transaction, VmSample,
};
use super::super::timeline::tests::one_growth;

/// When the first stage began.
pub(crate) const BEGUN: f64 = 1_764_000_000.0;

pub(crate) fn size(milli: u32, mib: u64) -> Size {
    Size::new(MilliCpu(milli), Bytes::from_mib(mib))
}

fn at(second: f64) -> At {
    At(BEGUN + second)
}

/// What is plugged from a second on.
const PLUGGED: [(f64, u32, u64); 12] = [
    (-20.0, 250, 512),
    (16.4, 1000, 512),
    (18.0, 1500, 512),
    (61.13, 1500, 768),
    (61.9, 1500, 1152),
    (63.0, 1500, 1536),
    (79.0, 750, 1536),
    (112.0, 250, 1536),
    (124.0, 250, 1152),
    (129.0, 250, 896),
    (134.0, 250, 640),
    (139.0, 250, 512),
];

fn plugged(second: f64) -> Size {
    let last = PLUGGED.iter().rfind(|(from, _, _)| *from <= second).unwrap_or(&PLUGGED[0]);
    size(last.1, last.2)
}

fn vm_sample(second: f64) -> VmSample {
    let now = plugged(second);
    VmSample {
        at: at(second),
        phase: "Running".to_owned(),
        min: size(250, 512),
        max: size(1500, 2560),
        spec: now,
        plugged: Some(now),
        approved: Some(now),
        node: Some("n1".to_owned()),
        pod: Some("demo-abcde".to_owned()),
        restarts: 0,
    }
}

fn books(second: f64) -> LedgerSample {
    let now = plugged(second);
    let amount = |cpu_millis, mib: u64| Amount { cpu_millis, memory_bytes: mib << 20 };
    let node = NodeBooks {
        name: "n1".to_owned(),
        allocatable: amount(2000, 6000),
        reserved: amount(400 + u64::from(now.cpu.0), 900 + (now.memory.0 >> 20)),
        promised: amount(now.cpu.0.into(), now.memory.0 >> 20),
    };
    LedgerSample { at: at(second), nodes: vec![node], vm: Some((now, Some(now))) }
}

fn run(load: Load, clients: u32, begun: f64, ended: f64) -> LoadRun {
    LoadRun {
        load,
        clients,
        begun: at(begun),
        ended: Some(at(ended)),
        failed: Some(0),
        trouble: None,
    }
}

/// Seconds of a load: its time, rate and latency.
fn seconds(
    recording: &mut Recording,
    load: Load,
    span: (u32, u32),
    tps: fn(f64) -> f64,
    ms: fn(f64) -> f64,
) {
    for second in span.0..span.1 {
        let now = f64::from(second);
        let (tps, latency_ms) = (tps(now), ms(now));
        recording.progress.push(Progress { at: at(now + 1.0), load, tps, latency_ms, failed: 0 });
        for part in 0..20 {
            let latency_ms = latency_ms * (0.7 + f64::from(part) * 0.06);
            let at = at(now + f64::from(part) / 20.0);
            recording.transactions.push(Transaction { at, load, latency_ms });
        }
    }
}

fn decision(second: f64, from: Size, to: Size, rule: &str) -> Decision {
    Decision {
        at: at(second),
        from,
        to,
        rule: rule.to_owned(),
        outcome: "done".to_owned(),
        attempts: 1,
        inputs: "demand 0.70 vCPU / 300 MiB".to_owned(),
    }
}

/// All went well.
pub(crate) fn good() -> Recording {
    let mut recording = Recording {
        applied: Some(at(-30.0)),
        first_sql: Some(at(-18.0)),
        events: one_growth(BEGUN + 61.0),
        ..Recording::default()
    };
    let stages = [
        (Stage::Light, 0.0, 15.0),
        (Stage::CpuHeavy, 15.0, 60.0),
        (Stage::MemoryHeavy, 60.0, 101.0),
        (Stage::LightAgain, 101.0, 150.0),
    ];
    recording.phases = stages
        .map(|(stage, begun, ended)| Phase { stage, begun: at(begun), ended: Some(at(ended)) })
        .into();
    recording.runs = vec![run(Load::Cpu, 4, 15.2, 60.0), run(Load::Memory, 2, 60.2, 101.0)];
    recording.runs.push(run(Load::Steady, 2, -12.0, 150.0));
    let busy = |second: f64| if (15.0..17.0).contains(&second) { 180.0 } else { 6.0 };
    seconds(&mut recording, Load::Steady, (0, 150), |_| 20.0, busy);
    seconds(&mut recording, Load::Cpu, (15, 60), |s| if s < 17.0 { 60.0 } else { 420.0 }, |_| 9.0);
    seconds(&mut recording, Load::Memory, (60, 101), |_| 0.2, |_| 9000.0);
    recording.vm = PLUGGED.iter().map(|(second, ..)| vm_sample(*second)).collect();
    for half in -40..300 {
        let second = f64::from(half) / 2.0;
        let now = plugged(second);
        let used = size(now.cpu.0 * 8 / 10, (now.memory.0 >> 20) * 7 / 10);
        let desired = plugged(second + 0.6);
        let permit = plugged(second + 0.3);
        recording.top.push(TopSample { at: at(second), desired, permit, plugged: now, used });
        if half % 2 == 0 {
            recording.ledger.push(books(second));
        }
    }
    recording.decisions = vec![
        decision(15.9, size(250, 512), size(1000, 512), "grow: demand"),
        decision(61.0, size(1500, 512), size(1500, 768), "grow: the guest asks"),
        decision(138.0, size(250, 640), size(250, 512), "shrink: calm"),
    ];
    let identity =
        Identity { postmaster_start: "1763999970.5".to_owned(), backend_pid: "117".to_owned() };
    recording.before = Some(identity.clone());
    recording.after = Some(identity);
    recording
}
