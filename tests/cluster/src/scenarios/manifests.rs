//! Manifests on a real API server: what is wrong is refused by the name of its field, what is right is taken.
//!
//! The cases are those of the API's own tests: there the rules are checked in Rust, here as the cluster has them.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::https::Answer;
use super::space::Space;
use super::{Needs, Scenario};
use crate::cache::repo_root;
use crate::cluster::Cluster;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "wrong manifests are refused by the name of their field",
        needs: Needs::System,
        deadline: Duration::from_secs(180),
        run: manifests,
    }]
}

const TESTS: &str = "controller/api/tests";
/// Fewer would mean that a table was not read.
const AT_LEAST: usize = 20;

/// A change of a specification and the fields for which it is refused.
#[derive(Debug, Deserialize)]
struct Create {
    name: String,
    spec: Value,
    #[serde(default)]
    refused: Vec<String>,
    #[serde(default)]
    schema: bool,
}

/// A specification and a change of it.
#[derive(Debug, Deserialize)]
struct Update {
    name: String,
    before: Value,
    after: Value,
    refused: Vec<String>,
}

fn manifests(cluster: &Cluster) -> Result<()> {
    let space = Space::new(cluster, "manifests")?;
    let mut wrong = creations(&space)?;
    wrong.extend(updates(&space)?);
    wrong.extend(samples(&space)?);
    wrong.extend(a_migration_is_refused(&space)?);
    ensure!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn read<T: for<'a> Deserialize<'a>>(file: &str) -> Result<T> {
    let path = repo_root()?.join(TESTS).join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_yaml::from_str(&text).with_context(|| format!("understand {}", path.display()))
}

fn collection(space: &Space) -> String {
    format!("/apis/vm.neon.tech/v1/namespaces/{}/virtualmachines", space.name())
}

/// The smallest VM with a changed specification. No scheduler places its pod.
fn vm(base: &Value, name: &str, changes: &Value) -> Value {
    let mut vm = base.clone();
    vm["metadata"] = json!({"name": name});
    vm["spec"] = merged(&merged(&base["spec"], &json!({"schedulerName": "nobody"})), changes);
    vm
}

fn creations(space: &Space) -> Result<Vec<String>> {
    let base: Value = read("samples/minimal.yaml")?;
    let cases: Vec<Create> = read("cases/create.yaml")?;
    ensure!(cases.len() >= AT_LEAST, "there are only {} cases", cases.len());
    let path = format!("{}?dryRun=All", collection(space));
    let mut wrong = Vec::new();
    for Create { name, spec, refused, schema } in cases {
        let answer = space.api.post(&path, &vm(&base, "case", &spec))?;
        let good = refused.is_empty() && !schema;
        wrong.extend(judge(&name, &answer, good.then_some(201), &refused));
    }
    Ok(wrong)
}

/// Says what is wrong with an answer: `accepted` is the status of success; without it the change is to be refused.
fn judge(name: &str, answer: &Answer, accepted: Option<u16>, fields: &[String]) -> Option<String> {
    let message = answer.message();
    let right = match accepted {
        Some(status) => answer.status == status,
        None => {
            [400, 403, 422].contains(&answer.status)
                && fields.iter().all(|field| message.contains(field.as_str()))
        }
    };
    let expected = accepted.map_or_else(|| format!("a refusal of {fields:?}"), |it| it.to_string());
    (!right).then(|| format!("{name}: {} instead of {expected}: {message}", answer.status))
}

fn updates(space: &Space) -> Result<Vec<String>> {
    let base: Value = read("samples/minimal.yaml")?;
    let cases: Vec<Update> = read("cases/update.yaml")?;
    ensure!(cases.len() >= AT_LEAST, "there are only {} cases", cases.len());
    let mut made = BTreeMap::new();
    let mut wrong = Vec::new();
    for Update { name, before, after, refused } in cases {
        let next = format!("before-{}", made.len());
        let path = match made.get(&before.to_string()) {
            Some(path) => String::clone(path),
            None => {
                let answer = space.api.post(&collection(space), &vm(&base, &next, &before))?;
                ensure!(answer.status == 201, "{name}: not created: {}", answer.message());
                let path = format!("{}/{next}", collection(space));
                made.insert(before.to_string(), path.clone());
                path
            }
        };
        // The controller stores its own default once it has seen the VM: from then on the mode is set.
        let stored = space.api.get(&path)?["spec"]["cpuScalingMode"].clone();
        if !stored.is_null() && before["cpuScalingMode"].is_null() && refused.is_empty() {
            let differs = |mode: &Value| !mode.is_null() && *mode != stored;
            if differs(&after["cpuScalingMode"]) {
                continue;
            }
        }
        let answer = space.api.patch(&format!("{path}?dryRun=All"), &json!({"spec": after}))?;
        wrong.extend(judge(&name, &answer, refused.is_empty().then_some(200), &refused));
    }
    Ok(wrong)
}

fn samples(space: &Space) -> Result<Vec<String>> {
    let path = format!("{}?dryRun=All", collection(space));
    let mut wrong = Vec::new();
    let minimal: Value = read("samples/minimal.yaml")?;
    let answer = space.api.post(&path, &minimal)?;
    wrong.extend(judge("the minimal sample", &answer, Some(201), &[]));

    let scaled: Value = read("samples/autoscaling.yaml")?;
    let answer = space.api.post(&path, &scaled)?;
    wrong.extend(judge("the sample with unquoted fractions", &answer, Some(201), &[]));
    let cpus = &answer.json()["spec"]["guest"]["cpus"];
    if *cpus != json!({"min": "250m", "max": "1250m", "use": "500m"}) {
        wrong.push(format!("unquoted fractions became {cpus}"));
    }

    let everything: Value = read("samples/postgres16-disk-test.yaml")?;
    let answer = space.api.post(&path, &everything)?;
    let fields = ["spec.disks", "spec.tls", "spec.extraNetwork.enable", "spec.guest.settings.swap"];
    let fields = fields.map(str::to_owned);
    wrong.extend(judge("the sample with parts that are not supported", &answer, None, &fields));

    for (cpu, stored) in [(json!(0.0001), Some("1m")), (json!(-0.5), None)] {
        let changes = json!({"guest": {"cpus": {"min": cpu}}});
        let answer = space.api.post(&path, &vm(&minimal, "case", &changes))?;
        let name = format!("a minimum of {cpu} CPU");
        wrong.extend(judge(&name, &answer, stored.map(|_| 201), &[]));
        let got = answer.json()["spec"]["guest"]["cpus"]["min"].clone();
        if stored.is_some_and(|stored| got != stored) {
            wrong.push(format!("{name} became {got}"));
        }
    }
    kubectl_says_it_too(space)?;
    Ok(wrong)
}

/// Accepted, it would sit there and do nothing.
fn a_migration_is_refused(space: &Space) -> Result<Option<String>> {
    let migration = json!({
        "apiVersion": "vm.neon.tech/v1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": "move"},
        "spec": {"vmName": "vm"},
    });
    let path =
        format!("/apis/vm.neon.tech/v1/namespaces/{}/virtualmachinemigrations", space.name());
    let answer = space.api.post(&path, &migration)?;
    Ok(judge("a migration", &answer, None, &["live migration is not supported yet".to_owned()]))
}

/// A user sees the field's name.
fn kubectl_says_it_too(space: &Space) -> Result<()> {
    let manifest = "apiVersion: vm.neon.tech/v1\nkind: VirtualMachine\nmetadata: {name: wrong}\n\
                    spec: {guest: {cpus: {min: 1, use: 2, max: 1}, memorySlots: {min: 1, use: 1, max: 1}, \
                    rootDisk: {image: x}}}\n";
    let Err(err) = space.apply(manifest) else { bail!("kubectl applied a wrong manifest") };
    let said = format!("{err:#}");
    ensure!(said.contains("spec.guest.cpus"), "kubectl does not name the field: {said}");
    Ok(())
}

/// A JSON merge patch.
fn merged(base: &Value, changes: &Value) -> Value {
    let Value::Object(changes) = changes else { return changes.clone() };
    let mut result = base.as_object().cloned().unwrap_or_default();
    for (key, change) in changes {
        if change.is_null() {
            result.remove(key);
        } else {
            let old = result.get(key).cloned().unwrap_or_default();
            result.insert(key.clone(), merged(&old, change));
        }
    }
    Value::Object(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_merged() {
        let base = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        let changes = json!({"a": {"b": null, "e": {"f": 3}}, "d": [2]});
        assert_eq!(merged(&base, &changes), json!({"a": {"c": 2, "e": {"f": 3}}, "d": [2]}));
    }

    #[test]
    fn a_refusal_must_name_every_field() {
        let answer = Answer { status: 422, body: json!({"message": "spec.a: no"}).to_string() };
        assert_eq!(judge("x", &answer, None, &["spec.a".into()]), None);
        assert!(judge("x", &answer, None, &["spec.a".into(), "spec.b".into()]).is_some());
        assert!(judge("x", &answer, Some(201), &[]).is_some());
    }

    #[test]
    fn the_tables_are_read() {
        assert!(read::<Vec<Create>>("cases/create.yaml").unwrap().len() >= AT_LEAST);
        assert!(read::<Vec<Update>>("cases/update.yaml").unwrap().len() >= AT_LEAST);
    }
}
