//! The wire format, held by files: a change that an older peer would not understand fails here.

use scheduler_protocol::extender::{
    BindingArgs, BindingResult, ExtenderArgs, FilterResult, HostPriority, MetaPod, MetaVictims,
    NodeName, PreemptionArgs, PreemptionResult,
};
use scheduler_protocol::{
    BadRequest, MAX_CPU, MAX_MEMORY, Outcome, PermitAnswer, PermitRequest, Refusal, RefusalCode,
    VERSION,
};
use serde_json::{Value, json};

const REQUEST: &str = include_str!("golden/v1/permit_request.json");
const ANSWER: &str = include_str!("golden/v1/permit_answer.json");
const REFUSAL: &str = include_str!("golden/v1/refusal.json");
const REQUEST_2: &str = include_str!("golden/v2/permit_request.json");
const ANSWER_2: &str = include_str!("golden/v2/permit_answer.json");
const ARGS: &str = include_str!("golden/v1/extender_args.json");
const PREEMPT: &str = include_str!("golden/v1/preemption_args.json");
const ANSWERS: &str = include_str!("golden/v1/extender_answers.json");

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("a golden file")
}

#[test]
fn permits_read_and_write_as_version_1() {
    let request: PermitRequest = serde_json::from_str(REQUEST).unwrap();
    assert_eq!(serde_json::to_value(&request).unwrap(), value(REQUEST));
    request.check().unwrap();
    let answer: PermitAnswer = serde_json::from_str(ANSWER).unwrap();
    assert_eq!(serde_json::to_value(&answer).unwrap(), value(ANSWER));
    assert_eq!((answer.outcome, answer.leased), (Outcome::Partial, None));
    let refusal: Refusal = serde_json::from_str(REFUSAL).unwrap();
    assert_eq!(serde_json::to_value(&refusal).unwrap(), value(REFUSAL));
    assert_eq!(refusal.code.status(), 409);
}

#[test]
fn permits_read_and_write_as_version_2() {
    let request: PermitRequest = serde_json::from_str(REQUEST_2).unwrap();
    assert_eq!(serde_json::to_value(&request).unwrap(), value(REQUEST_2));
    request.check().unwrap();
    assert_eq!(request.version, VERSION);
    let answer: PermitAnswer = serde_json::from_str(ANSWER_2).unwrap();
    assert_eq!(serde_json::to_value(&answer).unwrap(), value(ANSWER_2));
    assert!(answer.leased.is_some_and(|leased| answer.permit.fits_in(leased)));
}

#[test]
fn a_later_refusal_code_is_read_as_other() {
    let refusal: Refusal =
        serde_json::from_value(json!({"code": "on_holiday", "message": "x"})).unwrap();
    assert_eq!(refusal.code, RefusalCode::Other);
}

#[test]
fn absurd_requests_are_typed_errors() {
    let good: PermitRequest = serde_json::from_str(REQUEST).unwrap();
    let bad = |change: &dyn Fn(&mut PermitRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request.check().unwrap_err()
    };
    assert_eq!(bad(&|r| r.version = 3), BadRequest::Version { got: 3 });
    assert_eq!(bad(&|r| r.version = 0), BadRequest::Version { got: 0 });
    assert_eq!(bad(&|r| r.vm.uid.clear()), BadRequest::Name { field: "vm", part: "uid" });
    assert_eq!(
        bad(&|r| r.pod.name = "a/../b".into()),
        BadRequest::Name { field: "pod", part: "name" }
    );
    assert_eq!(bad(&|r| r.pod.namespace = "other".into()), BadRequest::Namespaces);
    assert_eq!(bad(&|r| r.want.cpu.0 = MAX_CPU.0 + 1), BadRequest::Absurd { field: "want" });
    assert_eq!(bad(&|r| r.current.memory.0 = u64::MAX), BadRequest::Absurd { field: "current" });
    assert_eq!(bad(&|r| r.want.memory.0 = MAX_MEMORY.0 + 1), BadRequest::Absurd { field: "want" });
    assert_eq!(bad(&|r| r.least.cpu.0 = 0), BadRequest::Zero { field: "least" });
    assert_eq!(bad(&|r| r.least.cpu.0 = 2001), BadRequest::LeastAboveWant);
}

#[test]
fn extender_bodies_are_read_without_copying_names() {
    let args: ExtenderArgs<'_> = serde_json::from_str(ARGS).unwrap();
    let names = args.node_names.as_deref().unwrap();
    assert_eq!(names.iter().map(NodeName::as_str).collect::<Vec<_>>(), ["n1", "n2"]);
    let body = ARGS.as_bytes().as_ptr_range();
    assert!(names.iter().all(|name| body.contains(&name.as_str().as_ptr())), "names are borrowed");
    let pod = &args.pod;
    assert!(matches!(pod.metadata.name, std::borrow::Cow::Borrowed("pg-x7k2q")));
    let owner = &pod.metadata.owner_references[0];
    assert_eq!((&*owner.api_version, &*owner.kind), ("vm.neon.tech/v1", "VirtualMachine"));
    assert_eq!(owner.controller, Some(true));
    assert_eq!(pod.spec.init_containers[1].restart_policy.as_deref(), Some("Always"));
    let requests = pod.spec.containers[0].resources.as_ref().unwrap().requests.as_ref().unwrap();
    assert_eq!(
        (requests.cpu.as_deref(), requests.memory.as_deref()),
        (Some("350m"), Some("1280Mi"))
    );
    let args: PreemptionArgs<'_> = serde_json::from_str(PREEMPT).unwrap();
    assert_eq!(args.node_name_to_meta_victims.unwrap().len(), 2);
    let args: BindingArgs = serde_json::from_value(
        json!({"PodName": "p", "PodNamespace": "d", "PodUID": "u", "Node": "n1"}),
    )
    .unwrap();
    assert_eq!(args.node, "n1");
}

#[test]
fn extender_answers_have_go_field_names() {
    let victims =
        MetaVictims { pods: Some(vec![MetaPod { uid: "u2".into() }]), num_pdb_violations: 0 };
    let written = json!({
        "filter": FilterResult {
            node_names: vec!["n1"],
            failed_nodes: vec![("n2", "no room")],
            error: "",
        },
        "fault": FilterResult { error: "not ready", ..FilterResult::default() },
        "prioritize": [HostPriority { host: "n1", score: 7 }],
        "preempt": PreemptionResult {
            node_name_to_meta_victims: [("n1".into(), victims)].into(),
        },
        "bound": BindingResult::default(),
        "unbound": BindingResult { error: "no room".into() },
    });
    assert_eq!(written, value(ANSWERS));
}
