//! The whole program against a kubectl that answers from files and writes down how it was called.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VM: &str = r#"{"apiVersion":"vm.neon.tech/v1","kind":"VirtualMachine",
  "metadata":{"namespace":"prod","name":"db","labels":{"autoscaling.neon.tech/enabled":"true"}},
  "spec":{"guest":{"cpus":{"min":1,"max":2,"use":1},"memorySlots":{"min":1,"max":4,"use":1},
  "rootDisk":{"image":"i"}}},"status":{"phase":"Running","node":"n1","cpus":1,"memorySize":"1Gi"}}"#;
const PODS: &str =
    r#"{"items":[{"metadata":{"name":"agent-1"},"spec":{"nodeName":"n1","containers":[]}}]}"#;
const WHY: &str = r#"{"at":"2025-09-23T10:11:12.345Z","from":{"vCPUs":1,"mem":"1Gi"},"to":{"vCPUs":2,"mem":"1Gi"},"rule":"demand","outcome":"done"}"#;
const TOP: &str = r#"{"namespace":"prod","name":"db","desired":{"vCPUs":2,"mem":"1Gi"},"permit":{"vCPUs":2,"mem":"1Gi"},"plugged":{"vCPUs":1,"mem":"1Gi"},"used":{"vCPUs":"900m","mem":"512Mi"}}"#;

/// A folder that `fake-kubectl` answers from.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        let fake = Self(folder);
        let list = format!(r#"{{"items":[{VM}]}}"#);
        for (file, text) in [("vm", VM), ("vms", &list), ("pods", PODS), ("why", WHY), ("top", TOP)]
        {
            fs::write(fake.0.join(file), text).unwrap();
        }
        let _ = fs::remove_file(fake.0.join("calls"));
        fake
    }

    fn run(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kubectl-vm"))
            .args(line.split_whitespace())
            .env("KUBECTL_VM_KUBECTL", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-kubectl"))
            .env("FAKE_FOLDER", &self.0)
            .output()
            .unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("calls")).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn why_asks_the_agent_of_the_vms_node() {
    let fake = Fake::new("why");
    let output = fake.run("why db -n prod --context c");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("2025-09-23T10:11:12.345Z  1/1Gi  2/1Gi  demand  done"));
    assert_eq!(
        fake.calls(),
        [
            "--context=c get virtualmachines.vm.neon.tech db --output=json --namespace prod",
            "--context=c get pods --namespace kube-system --selector=name=autoscaler-agent --field-selector=status.phase=Running --output=json",
            "--context=c exec --namespace kube-system agent-1 -- /usr/bin/autoscaler-agent why prod db",
        ]
    );
    assert_eq!(text(&fake.run("why db --json").stdout), WHY);
}

#[test]
fn top_shows_what_the_agent_says() {
    let fake = Fake::new("top");
    let output = fake.run("top -A --once");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let line = "prod       db    n1    Running  2/1Gi    2/1Gi      1/1Gi    900m/512Mi";
    assert_eq!(shown.lines().nth(1), Some(line), "{shown}");
    assert!(!shown.contains('\u{1b}'), "no escape sequences in a pipe");
}

#[test]
fn top_goes_on_without_an_agent() {
    let fake = Fake::new("top-alone");
    fs::write(fake.0.join("pods"), r#"{"items":[]}"#).unwrap();
    let output = fake.run("top db --once");
    let shown = text(&output.stdout);
    assert!(output.status.success());
    assert!(shown.contains("1/1Gi"), "{shown}");
    assert!(shown.contains("! node n1: no agent runs there"), "{shown}");
}

#[test]
fn errors_say_what_to_do() {
    let fake = Fake::new("errors");
    let output = fake.run("why missing -n prod");
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("kubectl get neonvm -A") && error.contains("NotFound"), "{error}");
    fs::write(fake.0.join("pods"), r#"{"items":[]}"#).unwrap();
    let error = text(&fake.run("why db -n prod").stderr);
    assert!(error.contains("no agent runs on node n1"), "{error}");
    assert_eq!(fake.run("why").status.code(), Some(64));
    assert_eq!(fake.run("--help").status.code(), Some(0));
}
