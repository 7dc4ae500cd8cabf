//! Bodies that nobody means, through the real routes: who calls, decoding, the ledger. Whatever comes is answered as asked or
//! refused with a typed 4xx, and what is refused changes nothing in the books. Seeded: a failure names the seed of its body.
//!
//! Ten million: `cargo test --release -p scheduler-extender million -- --ignored`

use http::header::AUTHORIZATION;
use scheduler_protocol::PermitRequest;
use tower::util::ServiceExt as _;

use super::*;
use crate::visitors::Visitors;

/// Small numbers from a seed, one after the other (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.roll() % count.max(1) as u64).expect("below a usize")
    }
}

/// A path, and bodies that it takes.
type Good = (&'static str, Vec<Value>);

fn goods() -> Vec<Good> {
    let golden = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let mut newer = permit(2, "750m");
    newer["version"] = json!(2);
    let args = golden(include_str!("../../../protocol/tests/golden/v1/extender_args.json"));
    let binding = json!({"PodName": "o1", "PodNamespace": "default", "PodUID": "o1", "Node": "n1"});
    vec![
        (
            "/v1/permit",
            vec![
                permit(1, "1"),
                newer,
                golden(include_str!("../../../protocol/tests/golden/v1/permit_request.json")),
                golden(include_str!("../../../protocol/tests/golden/v2/permit_request.json")),
            ],
        ),
        ("/scheduler/filter", vec![args.clone()]),
        ("/scheduler/prioritize", vec![args]),
        (
            "/scheduler/preempt",
            vec![golden(include_str!("../../../protocol/tests/golden/v1/preemption_args.json"))],
        ),
        ("/scheduler/bind", vec![binding]),
    ]
}

/// Everything in a value, by its place.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            // Names with a slash are for others.
            let plain = fields.iter().filter(|(name, _)| !name.contains(['/', '~']));
            plain.for_each(|(name, value)| places(value, &format!("{at}/{name}"), all));
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(index, value)| places(value, &format!("{at}/{index}"), all));
        }
        _ => {}
    }
}

/// What stands where something else belongs, as text.
const ODD: [&str; 24] = [
    "0",
    "-1",
    "1",
    "3",
    "18446744073709551615",
    "-9223372036854775808",
    "1e308",
    "0.1",
    r#""""#,
    r#""0""#,
    r#""-1""#,
    r#""1e400""#,
    r#""9999999999Ei""#,
    r#""0.0000001""#,
    r#""1n""#,
    r#""u1""#,
    r#""\u0000\u202e/../%s""#,
    "null",
    "true",
    "[]",
    "{}",
    r#"["n1"]"#,
    r#"{"n1": {}}"#,
    "4096",
];

fn odd(dice: &mut Dice) -> Value {
    match dice.below(ODD.len() + 3) {
        24 => (0..200).fold(Value::Null, |inner, _| Value::Array(vec![inner])),
        25 => "x".repeat(300).into(),
        26 => dice.roll().into(),
        at => serde_json::from_str(ODD[at]).expect("JSON"),
    }
}

/// A field is replaced by something odd or by another field, dropped, doubled, or renamed.
fn bend(value: &mut Value, dice: &mut Dice) {
    let mut all = Vec::new();
    places(value, "", &mut all);
    let (one, other) = (dice.below(all.len()), dice.below(all.len()));
    let (one, other) = (all[one].clone(), all[other].clone());
    let taken = match dice.below(3) {
        0 => value.pointer(&other).cloned().unwrap_or_default(),
        _ => odd(dice),
    };
    let (parent, name) = one.rsplit_once('/').unwrap_or(("", ""));
    match (dice.below(5), value.pointer_mut(parent)) {
        (0, Some(Value::Object(fields))) => drop(fields.remove(name)),
        (1, Some(Value::Object(fields))) => {
            let moved = fields.remove(name).unwrap_or_default();
            fields.insert(format!("{name}s"), moved);
        }
        (2, Some(Value::Array(items))) => items.push(taken),
        _ => *value.pointer_mut(&one).expect("a place in it") = taken,
    }
}

/// Bytes are flipped, cut off, repeated or put in.
fn break_bytes(body: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(body.len());
        match dice.below(5) {
            0 => body.truncate(at),
            1 => body.insert(at, u8::try_from(dice.below(256)).expect("a byte")),
            2 => body.extend_from_within(at..),
            _ => {
                let bit = dice.below(8);
                body.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
            }
        }
    }
}

struct Mutant {
    path: &'static str,
    token: Option<&'static str>,
    body: Vec<u8>,
}

/// The body of a seed. Six of ten are permits.
fn mutant(goods: &[Good], seed: u64) -> Mutant {
    let mut dice = Dice(seed);
    let (path, bodies) = &goods[dice.below(10).saturating_sub(5)];
    let mut value = bodies[dice.below(bodies.len())].clone();
    if *path == "/v1/permit" {
        // What is left of a good one is not stale.
        value["generation"] = json!(seed + 1);
    }
    let bent = dice.below(4);
    (0..bent).for_each(|_| bend(&mut value, &mut dice));
    let mut body = value.to_string().into_bytes();
    if dice.below(4) == 0 {
        break_bytes(&mut body, &mut dice);
    }
    if dice.below(1000) == 0 {
        body.resize(scheduler_protocol::MAX_BODY_BYTES + dice.below(100), b' ');
    }
    let token = match dice.below(40) {
        0 => None,
        1 => Some("stolen"),
        2 => Some("agent-n2"),
        _ => Some("agent-n1"),
    };
    Mutant { path, token, body }
}

/// A VM that has its maximum: no permit waits for kubelet.
async fn grown() -> Extender {
    let extender = extender("fuzz").await;
    extender.running().await;
    let all = VmFacts { max: vm().wanted, ..vm() };
    extender.core.tell(Event::Vm(all)).await.unwrap();
    let kind = PodKind::Ordinary { requests: Amount { cpu_millis: 100, memory_bytes: GIB } };
    let waits = PodFacts { uid: "o1".into(), name: "o1".into(), node: None, kind, ..pod(0, 1) };
    extender.core.tell(Event::Pod(waits)).await.unwrap();
    let _all_told = extender.dump().await;
    extender
}

/// How many were answered as asked.
async fn fuzz(seeds: std::ops::Range<u64>) -> u64 {
    let (extender, goods) = (grown().await, goods());
    let router = routes::router(Arc::clone(&extender.shared));
    let visitor = Arc::new(Arc::new(Visitors::new()).enter([127, 0, 0, 1].into()).unwrap());
    let books = || extender.core.read(scheduler_ledger::Ledger::dump).unwrap();
    let (mut answered, mut before) = (0, books());
    for seed in seeds {
        let Mutant { path, token, body } = mutant(&goods, seed);
        let mut request = Request::post(path)
            .extension(tls::Peer { kube_scheduler: true })
            .extension(Arc::clone(&visitor));
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::from(body.clone())).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        let what = || format!("seed {seed}: {path} {:?}", String::from_utf8_lossy(&body));
        if status == StatusCode::OK {
            if path == "/v1/permit" {
                let meant: PermitRequest = serde_json::from_slice(&body).unwrap();
                assert!(token == Some("agent-n1") && meant.check().is_ok(), "{}", what());
                let who = (meant.vm.name.as_str(), meant.vm.uid.as_str(), meant.pod.uid.as_str());
                assert_eq!(who, ("pg", "u1", "p1"), "{}", what());
            }
            answered += 1;
            before = books();
        } else {
            let refusal: Refusal = serde_json::from_slice(&answer).unwrap();
            assert!(status.is_client_error(), "{status} {refusal:?} for {}", what());
            assert_eq!(status.as_u16(), refusal.code.status(), "{}", what());
            assert_eq!(books(), before, "{status} changed the books: {}", what());
        }
        if seed.is_multiple_of(1000) {
            extender.calls.lock().unwrap().clear();
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_nobody_means_are_refused_and_change_nothing() {
    let answered = fuzz(0..50_000).await;
    assert!((100..40_000).contains(&answered), "{answered} of 50,000 were valid after all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; the same with more seeds"]
async fn ten_million_bodies_are_refused_or_answered() {
    assert!(fuzz(0..10_000_000).await > 0);
}
