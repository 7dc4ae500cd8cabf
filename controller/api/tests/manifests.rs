//! The committed manifests are what the types say. `UPDATE_EXPECT=1` rewrites them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use controller_api::manifest;
use serde_json::Value;

fn compare(folder: &str, files: &[(String, String)]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for old in fs::read_dir(&folder).unwrap() {
            fs::remove_file(old.unwrap().path()).unwrap();
        }
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }
    for (name, text) in files {
        let path = folder.join(name);
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == *text, "{} is stale: run with UPDATE_EXPECT=1", path.display());
    }
    let mut names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    let mut there: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, names, "files in {}", folder.display());
}

fn crd(name: &str) -> Value {
    let (_, text) = manifest::crds().into_iter().find(|(file, _)| file == name).unwrap();
    serde_yaml::from_str(&text).unwrap()
}

#[test]
fn committed_crds_are_fresh() {
    compare("crds", &manifest::crds());
}

#[test]
fn committed_policies_are_fresh() {
    compare("policies", &manifest::policies());
}

#[test]
fn every_document_is_yaml_of_a_known_kind() {
    let known = [
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "Namespace",
        "ConfigMap",
    ];
    for (name, text) in manifest::crds().into_iter().chain(manifest::policies()) {
        let documents = text.split("---\n").skip(1);
        for document in documents {
            let value: Value = serde_yaml::from_str(document).unwrap();
            let kind = value["kind"].as_str().unwrap();
            assert!(known.contains(&kind), "{name}: {kind}");
        }
    }
}

/// Name, source and priority of each column.
fn columns(crd: &Value) -> Vec<(String, String, i64)> {
    let columns = crd.pointer("/spec/versions/0/additionalPrinterColumns");
    columns
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|column| {
            let text = |key: &str| column[key].as_str().unwrap().to_owned();
            let expected = if text("name") == "Age" { "date" } else { "string" };
            assert_eq!(text("type"), expected);
            (text("name"), text("jsonPath"), column["priority"].as_i64().unwrap_or(0))
        })
        .collect()
}

#[test]
fn names_and_columns_are_those_of_the_reference() {
    let vm = crd("virtualmachines.yaml");
    let names = &vm["spec"]["names"];
    assert_eq!(names["singular"], "neonvm");
    assert_eq!(names["plural"], "virtualmachines");
    assert_eq!(names["kind"], "VirtualMachine");
    let expected = [
        ("Cpus", ".status.cpus", 0),
        ("Memory", ".status.memorySize", 0),
        ("Pod", ".status.podName", 0),
        ("ExtraIP", ".status.extraNetIP", 0),
        ("Status", ".status.phase", 0),
        ("Restarts", ".status.restartCount", 0),
        ("Age", ".metadata.creationTimestamp", 0),
        ("Node", ".status.node", 1),
        ("Image", ".spec.guest.rootDisk.image", 1),
        ("CPUScalingMode", ".spec.cpuScalingMode", 1),
        ("TargetArchitecture", ".spec.targetArchitecture", 1),
    ];
    let expected = expected.map(|(name, path, wide)| (name.to_owned(), path.to_owned(), wide));
    assert_eq!(columns(&vm), expected);

    let migration = crd("virtualmachinemigrations.yaml");
    assert_eq!(migration["spec"]["names"]["singular"], "neonvmm");
    let expected = [
        ("VM", ".spec.vmName", 0),
        ("Source", ".status.sourcePodName", 0),
        ("SourceIP", ".status.sourcePodIP", 1),
        ("Target", ".status.targetPodName", 0),
        ("TargetIP", ".status.targetPodIP", 1),
        ("Status", ".status.phase", 0),
        ("Age", ".metadata.creationTimestamp", 0),
    ];
    let expected = expected.map(|(name, path, wide)| (name.to_owned(), path.to_owned(), wide));
    assert_eq!(columns(&migration), expected);

    let pool = crd("ippools.yaml");
    assert_eq!(pool["spec"]["names"]["singular"], "ippool");
    assert!(columns(&pool).is_empty());
    assert!(pool.pointer("/spec/versions/0/subresources/status").is_none());
}

#[test]
fn defaults_are_in_the_schema() {
    let vm = crd("virtualmachines.yaml");
    let spec =
        vm.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties").unwrap();
    let default = |path: &str| {
        let path = path.replace('.', "/properties/");
        spec.pointer(&format!("/{path}/default")).cloned().unwrap_or(Value::Null)
    };
    for (path, value) in [
        ("qmp", "20183"),
        ("qmpManual", "20184"),
        ("runnerPort", "25183"),
        ("terminationGracePeriodSeconds", "5"),
        ("restartPolicy", "\"Always\""),
        ("enableAcceleration", "true"),
        ("enableSSH", "true"),
        ("enableNetworkMonitoring", "false"),
        ("guest.memorySlotSize", "\"1Gi\""),
        ("guest.rootDisk.imagePullPolicy", "\"IfNotPresent\""),
        ("extraNetwork.enable", "false"),
        ("extraNetwork.interface", "\"net1\""),
        ("tls.mountPath", "\"/var/tls\""),
        ("nodeSelector", "null"),
        ("disks", "null"),
        ("targetArchitecture", "null"),
    ] {
        assert_eq!(default(path).to_string(), value, "{path}");
    }
    assert_eq!(
        spec.pointer("/guest/properties/ports/items/properties/protocol/default").unwrap(),
        "TCP"
    );
}

/// Nothing in a schema that the API server warns of or that would keep an explicit null.
#[test]
fn schemas_have_no_odd_formats_and_no_nulls() {
    fn walk(path: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                assert!(!map.contains_key("nullable"), "{path}");
                if let Some(Value::String(format)) = map.get("format") {
                    let known = ["int32", "int64", "date-time", "double", "byte"];
                    assert!(known.contains(&format.as_str()), "{path}: {format}");
                }
                for (key, value) in map {
                    walk(&format!("{path}.{key}"), value);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| walk(path, item)),
            _ => {}
        }
    }
    for name in ["virtualmachines.yaml", "virtualmachinemigrations.yaml", "ippools.yaml"] {
        walk(name, &crd(name)["spec"]["versions"][0]["schema"]);
    }
}
