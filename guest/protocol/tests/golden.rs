//! The bytes on the wire, one set of files per version. `UPDATE_EXPECT=1` writes them anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;

use guest_protocol::{
    Ask, AskReason, CURRENT, CacheWindows, Envelope, ErrorBody, ErrorCode, Generation, Greeting,
    Hello, KeeperRequest, KeeperResponse, KeeperState, Message, Metrics, Never, RoleName, Sample,
    ScalerNotify, ScalerRequest, ScalerResponse, Signals, Text, Versions, Welcome,
};
use guest_units::{Bytes, MilliCpu, Size};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{CURRENT}"))
}

/// Compares with the file, in both directions.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    seen: &mut BTreeSet<String>,
    name: &str,
    value: &T,
) {
    let path = folder().join(format!("{name}.json"));
    let text = serde_json::to_string(value).unwrap() + "\n";
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{name} changed; a change on the wire needs a new version");
    assert_eq!(&serde_json::from_str::<T>(&golden).unwrap(), value, "{name}");
    seen.insert(format!("{name}.json"));
}

fn size(cpu: u32, mib: u64) -> Size {
    Size::new(MilliCpu(cpu), Bytes::from_mib(mib))
}

type Scaler = Envelope<ScalerRequest, ScalerResponse, ScalerNotify>;
type Keeper = Envelope<KeeperRequest, KeeperResponse, Never>;

fn greetings(seen: &mut BTreeSet<String>) {
    let versions = Versions { min: 1, max: 1 };
    check(seen, "hello", &Greeting::Hello(Hello { role: RoleName::Scaler, versions }));
    let boot_id = Text::new("0f8fad5b-d9cb-469f-a165-70867728950e");
    let welcome = Welcome { role: RoleName::Keeper, version: 1, boot_id };
    check(seen, "welcome", &Greeting::Welcome(welcome));
    let error = ErrorBody::new(ErrorCode::Refused, "no common version");
    check(seen, "refused", &Greeting::Error(error));
}

fn scaler(seen: &mut BTreeSet<String>) {
    let generation = Generation { epoch: 3, counter: 42 };
    let signals = Signals {
        cpu_short: MilliCpu(240),
        cpu_long: MilliCpu(200),
        runnable: 3,
        cpu_pressure_permille: 120,
        throttled_permille: 80,
        memory_total: Bytes::from_mib(485),
        memory_available: Bytes::from_mib(200),
        memory_slope_per_second: Bytes::from_mib(12),
        memory_pressure_permille: 5,
        refaults_per_second: 7,
        swap_used: Bytes(0),
    };
    let sample = Sample {
        demand: size(500, 384),
        used: size(240, 285),
        signals,
        metrics: None,
        cache: None,
    };
    let metrics = Metrics {
        load1_milli: 310,
        load5_milli: 1250,
        memory_total: Bytes::from_mib(485),
        memory_available: Bytes::from_mib(210),
        memory_cached: Bytes::from_mib(96),
    };
    let cache = Some(CacheWindows::new([100, 250, 240]));
    let with_metrics = Sample { metrics: Some(metrics), cache, ..sample };
    let ask = Ask { seq: 5, want: size(500, 1024), reason: AskReason::MemorySlope };
    let least = size(250, 640);
    let cases: [(&str, Message<_, _, _>); 9] = [
        ("sample", Message::Notify(ScalerNotify::Sample(sample))),
        ("sample_with_metrics", Message::Notify(ScalerNotify::Sample(with_metrics))),
        ("ask", Message::Notify(ScalerNotify::Ask(ask))),
        (
            "may_shrink",
            Message::Request {
                id: 1,
                request: ScalerRequest::MayShrink {
                    generation,
                    from: size(1000, 1024),
                    to: size(250, 512),
                },
            },
        ),
        (
            "resized",
            Message::Request {
                id: 2,
                request: ScalerRequest::Resized { generation, plugged: size(1000, 1024) },
            },
        ),
        ("fine", Message::Response { id: 1, response: ScalerResponse::Fine {} }),
        (
            "veto",
            Message::Response {
                id: 1,
                response: ScalerResponse::Veto { least, reason: Text::new("memory in use") },
            },
        ),
        (
            "confirmed",
            Message::Response {
                id: 2,
                response: ScalerResponse::Confirmed {
                    cpus_online: 1,
                    memory_total: Bytes::from_mib(997),
                },
            },
        ),
        ("error", Message::Error { id: 9, error: ErrorBody::new(ErrorCode::Stale, "seen 3.43") }),
    ];
    for (name, message) in cases {
        check(seen, &format!("scaler_{name}"), &Scaler::from(message));
    }
}

fn keeper(seen: &mut BTreeSet<String>) {
    let generation = Generation { epoch: 1, counter: 7 };
    let (from, to) = (Bytes::from_gib(2), Bytes::from_mib(1536));
    let requests = [
        ("state", KeeperRequest::State {}),
        ("set_cpu", KeeperRequest::SetCpu { generation, cpu: MilliCpu(1500) }),
        ("may_shrink_memory", KeeperRequest::MayShrinkMemory { generation, from, to }),
        ("power_down", KeeperRequest::PowerDown {}),
    ];
    for (name, request) in requests {
        check(seen, &format!("keeper_{name}"), &Keeper::from(Message::Request { id: 1, request }));
    }
    let state = KeeperState {
        cpus_present: 2,
        cpus_online: 2,
        quota: MilliCpu(1500),
        memory_total: Bytes::from_mib(485),
    };
    let responses = [
        ("state_answer", KeeperResponse::State(state)),
        ("fine", KeeperResponse::Fine {}),
        (
            "veto",
            KeeperResponse::Veto { least: Bytes::from_mib(1800), reason: Text::new("in use") },
        ),
        ("powering_down", KeeperResponse::PoweringDown {}),
    ];
    for (name, response) in responses {
        check(
            seen,
            &format!("keeper_{name}"),
            &Keeper::from(Message::Response { id: 1, response }),
        );
    }
}

#[test]
fn the_wire_is_as_written_down() {
    let mut seen = BTreeSet::new();
    greetings(&mut seen);
    scaler(&mut seen);
    keeper(&mut seen);
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, seen, "a file without a message is stale");
}

#[test]
fn newer_peers_are_understood_as_far_as_possible() {
    let error: ErrorBody = serde_json::from_str(r#"{"code":"quite_new"}"#).unwrap();
    assert_eq!(error.code, ErrorCode::Unknown);
    let ask = r#"{"seq":1,"want":{"vCPUs":1,"mem":0},"reason":"moon_phase","more":[]}"#;
    assert_eq!(serde_json::from_str::<Ask>(ask).unwrap().reason, AskReason::Unknown);
    let sample = r#"{"demand":{"vCPUs":1,"mem":0},"used":{"vCPUs":0,"mem":0}}"#;
    let sample = serde_json::from_str::<Sample>(sample).unwrap();
    assert_eq!((sample.signals, sample.metrics, sample.cache), (Signals::default(), None, None));
    let envelopes = [
        r"{}",
        r#"{"id":1}"#,
        r#"{"request":{"state":{}}}"#,
        r#"{"id":1,"request":{"state":{}},"response":{"fine":{}}}"#,
        r#"{"id":1,"request":{"reboot":{}}}"#,
        r#"{"notify":{}}"#,
    ];
    for text in envelopes {
        let message = serde_json::from_str::<Keeper>(text).map(Message::try_from);
        assert!(!matches!(message, Ok(Ok(_))), "{text}");
    }
}
