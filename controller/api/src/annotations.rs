//! What annotations hold: the approval that opens the plug's gate, the bounds that a user sets, and
//! what a runner pod says about its VM.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use guest_units::{Bytes, MilliCpu, Size};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::names;
use crate::vm::{VirtualMachine, VirtualMachineSpec};

/// An annotation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationError {
    /// It is not the JSON that it should be.
    #[error("read annotation {annotation}")]
    Json {
        /// Key of the annotation.
        annotation: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// It says something that cannot be.
    #[error("annotation {annotation}: {reason}")]
    Meaning {
        /// Key of the annotation.
        annotation: &'static str,
        /// Why not.
        reason: String,
    },
    /// The signature is not base64.
    #[error("decode the signature of annotation {}", names::ANNOTATION_APPROVED_PROOF)]
    Signature {
        /// What the decoder says.
        source: base64::DecodeError,
    },
}

/// The extender's word that a VM may be this large. The operator plugs no more than it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The largest size that is promised.
    pub size: Size,
    /// Term of the extender that issued it.
    pub epoch: u64,
    /// Counts up within a term.
    pub generation: u64,
    /// Ed25519 over [`Approval::signing_bytes`], in base64.
    pub signature: String,
}

/// The companion annotation: everything but the size.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Proof {
    epoch: u64,
    generation: u64,
    signature: String,
}

impl Approval {
    /// An approval that `sign` signs.
    pub fn signed(
        vm_uid: &str,
        size: Size,
        epoch: u64,
        generation: u64,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Self {
        let mut approval = Self { size, epoch, generation, signature: String::new() };
        approval.signature = BASE64.encode(sign(&approval.signing_bytes(vm_uid)));
        approval
    }

    /// What is signed. The VM's UID keeps an approval from being moved to another VM, or to a later
    /// one of the same name.
    #[must_use]
    pub fn signing_bytes(&self, vm_uid: &str) -> Vec<u8> {
        let Self { size: Size { cpu, memory }, epoch, generation, signature: _ } = self;
        format!("neonvm-approval-v1|{vm_uid}|{}|{}|{epoch}|{generation}", cpu.0, memory.0)
            .into_bytes()
    }

    /// The signature's bytes, for the one who verifies them.
    pub fn signature_bytes(&self) -> Result<Vec<u8>, AnnotationError> {
        BASE64.decode(&self.signature).map_err(|source| AnnotationError::Signature { source })
    }

    /// Orders approvals of one VM by age.
    #[must_use]
    pub fn age(&self) -> (u64, u64) {
        (self.epoch, self.generation)
    }

    /// Reads the two annotations. `None` if neither is there; one alone is worth nothing.
    pub fn from_annotations(
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, AnnotationError> {
        let size = annotations.get(names::ANNOTATION_APPROVED);
        let proof = annotations.get(names::ANNOTATION_APPROVED_PROOF);
        let (size, proof) = match (size, proof) {
            (None, None) => return Ok(None),
            (Some(size), Some(proof)) => (size, proof),
            (Some(_), None) | (None, Some(_)) => {
                return Err(AnnotationError::Meaning {
                    annotation: names::ANNOTATION_APPROVED,
                    reason: "only one of the approval and its proof is there".to_owned(),
                });
            }
        };
        let size = read(names::ANNOTATION_APPROVED, size)?;
        let Proof { epoch, generation, signature } = read(names::ANNOTATION_APPROVED_PROOF, proof)?;
        Ok(Some(Self { size, epoch, generation, signature }))
    }

    /// The two annotations.
    #[must_use]
    pub fn to_annotations(&self) -> BTreeMap<String, String> {
        let Self { size, epoch, generation, signature } = self;
        let proof = json!({ "epoch": epoch, "generation": generation, "signature": signature });
        BTreeMap::from([
            (names::ANNOTATION_APPROVED.to_owned(), json!(size).to_string()),
            (names::ANNOTATION_APPROVED_PROOF.to_owned(), proof.to_string()),
        ])
    }
}

/// What a user wants instead of the spec's minimum and maximum, for autoscaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Smallest size.
    pub min: Size,
    /// Largest size.
    pub max: Size,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoundsJson {
    min: BoundJson,
    max: BoundJson,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoundJson {
    cpu: MilliCpu,
    mem: Bytes,
}

impl Bounds {
    /// Reads the annotation. All four values must be above zero and in order, the memory a multiple
    /// of the VM's slot size.
    pub fn parse(text: &str, slot_size: Bytes) -> Result<Self, AnnotationError> {
        let annotation = names::ANNOTATION_BOUNDS;
        let BoundsJson { min, max } = read(annotation, text)?;
        let wrong = |reason: String| AnnotationError::Meaning { annotation, reason };
        for (name, BoundJson { cpu, mem }) in [("min", &min), ("max", &max)] {
            if cpu.0 == 0 {
                return Err(wrong(format!("{name}.cpu must be above zero")));
            }
            if mem.0 == 0 || slot_size.0 == 0 || mem.0 % slot_size.0 != 0 {
                let slots = format!("{name}.mem must be a multiple of the slot size, above zero");
                return Err(wrong(slots));
            }
        }
        if min.cpu > max.cpu || min.mem > max.mem {
            return Err(wrong("min must not be above max".to_owned()));
        }
        Ok(Self {
            min: Size { cpu: min.cpu, memory: min.mem },
            max: Size { cpu: max.cpu, memory: max.mem },
        })
    }

    /// The bounds that hold for a VM: its annotation's within its spec's, or its spec's.
    ///
    /// Bounds outside of the spec's minimum and maximum are cut to them: the VM was built for no other sizes.
    pub fn of(vm: &VirtualMachine) -> Result<Self, AnnotationError> {
        let spec = Self { min: vm.min_size(), max: vm.max_size() };
        let annotations = vm.metadata.annotations.as_ref();
        let Some(text) = annotations.and_then(|all| all.get(names::ANNOTATION_BOUNDS)) else {
            return Ok(spec);
        };
        let Self { min, max } = Self::parse(text, vm.spec.guest.memory_slot_size)?;
        Ok(Self { min: min.clamp(spec.min, spec.max), max: max.clamp(spec.min, spec.max) })
    }
}

/// Whether a VM is autoscaled.
#[must_use]
pub fn is_autoscaled(vm: &VirtualMachine) -> bool {
    let labels = vm.metadata.labels.as_ref();
    labels.and_then(|all| all.get(names::LABEL_AUTOSCALING_ENABLED)).is_some_and(|it| it == "true")
}

/// Labels that the runner pod of a VM has, exactly.
#[must_use]
pub fn pod_labels(vm: &VirtualMachine) -> BTreeMap<String, String> {
    let mut labels = vm.metadata.labels.clone().unwrap_or_default();
    labels.insert(names::LABEL_APP.to_owned(), names::APP.to_owned());
    labels.insert(names::LABEL_VM_NAME.to_owned(), vm.metadata.name.clone().unwrap_or_default());
    labels
}

/// Annotations that the runner pod of a VM has, exactly, besides those of [`names::FOREIGN_ANNOTATIONS`].
#[must_use]
pub fn pod_annotations(vm: &VirtualMachine) -> BTreeMap<String, String> {
    let mut annotations = vm.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(names::ANNOTATION_LAST_APPLIED);
    annotations.remove(names::ANNOTATION_OVERCOMMIT);
    annotations.retain(|key, _| !key.starts_with(names::INTERNAL_PREFIX));
    annotations.extend([
        (names::ANNOTATION_DEFAULT_CONTAINER.to_owned(), names::RUNNER_CONTAINER.to_owned()),
        (names::ANNOTATION_USAGE.to_owned(), usage(&vm.spec)),
        (names::ANNOTATION_RESOURCES.to_owned(), resources(&vm.spec)),
    ]);
    if let Some(overcommit) = overcommit(&vm.spec) {
        annotations.insert(names::ANNOTATION_OVERCOMMIT.to_owned(), overcommit);
    }
    annotations
}

/// Value of [`names::ANNOTATION_USAGE`]. Both are strings: its readers know no numbers there.
#[must_use]
pub fn usage(spec: &VirtualMachineSpec) -> String {
    let Size { cpu, memory } = spec.use_size();
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    json!({ "cpu": text(json!(cpu)), "memory": text(json!(memory)) }).to_string()
}

/// Value of [`names::ANNOTATION_RESOURCES`].
#[must_use]
pub fn resources(spec: &VirtualMachineSpec) -> String {
    json!({
        "cpus": spec.guest.cpus,
        "memorySlots": spec.guest.memory_slots,
        "memorySlotSize": spec.guest.memory_slot_size,
    })
    .to_string()
}

/// Value of [`names::ANNOTATION_OVERCOMMIT`], if the VM has one.
#[must_use]
pub fn overcommit(spec: &VirtualMachineSpec) -> Option<String> {
    spec.overcommit.as_ref().map(|overcommit| json!(overcommit).to_string())
}

fn read<T: serde::de::DeserializeOwned>(
    annotation: &'static str,
    text: &str,
) -> Result<T, AnnotationError> {
    serde_json::from_str(text).map_err(|source| AnnotationError::Json { annotation, source })
}
