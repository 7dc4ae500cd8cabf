//! The plug's gate: which approval of the scheduler counts.
//!
//! An approval is a size, signed for one VM with an epoch and a generation. Here it is read and its signature checked;
//! whether it is newer than what was obeyed before is the lifecycle's to judge.

use std::collections::BTreeMap;

use controller_api::{Approval, VirtualMachine};
use controller_lifecycle::Approved;
use guest_units::Chain;
use ring::signature::{ED25519, UnparsedPublicKey};

/// What the VM's annotations approve, judged with the extender's public key.
pub(crate) fn judge(vm: &VirtualMachine, uid: &str, public_key: &[u8]) -> Approved {
    match check(vm, uid, public_key) {
        Ok(approval) => Approved::Size { size: approval.size, age: approval.age() },
        Err(reason) => Approved::Missing(reason),
    }
}

fn check(vm: &VirtualMachine, uid: &str, public_key: &[u8]) -> Result<Approval, String> {
    let unreadable = |err| format!("the scheduler's approval cannot be read: {}", Chain(&err));
    let none = BTreeMap::new();
    let annotations = vm.metadata.annotations.as_ref().unwrap_or(&none);
    let approval = Approval::from_annotations(annotations)
        .map_err(unreadable)?
        .ok_or("the scheduler has approved nothing yet")?;
    let signature = approval.signature_bytes().map_err(unreadable)?;
    UnparsedPublicKey::new(&ED25519, public_key)
        .verify(&approval.signing_bytes(uid), &signature)
        .map_err(|_| "the signature of the scheduler's approval does not hold")?;
    Ok(approval)
}

#[cfg(test)]
mod tests {
    use controller_api::{VirtualMachineSpec, names};
    use guest_units::{Bytes, MilliCpu, Size};
    use ring::rand::SystemRandom;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    const SIZE: Size = Size { cpu: MilliCpu(1500), memory: Bytes(2 << 30) };

    fn key() -> Ed25519KeyPair {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()
    }

    fn vm(approval: &Approval) -> VirtualMachine {
        let spec: VirtualMachineSpec = serde_json::from_value(json!({
            "guest": {
                "cpus": {"min": 1, "max": 4, "use": 2},
                "memorySlots": {"min": 1, "max": 4, "use": 2},
                "rootDisk": {"image": "image"},
            }
        }))
        .unwrap();
        let mut vm = VirtualMachine::new("vm", spec);
        vm.metadata.annotations = Some(approval.to_annotations());
        vm
    }

    fn approve(key: &Ed25519KeyPair, uid: &str, epoch: u64, generation: u64) -> Approval {
        Approval::signed(uid, SIZE, epoch, generation, |bytes| key.sign(bytes).as_ref().to_vec())
    }

    fn opens(vm: &VirtualMachine, uid: &str, key: &Ed25519KeyPair) -> bool {
        let approved = judge(vm, uid, key.public_key().as_ref());
        matches!(approved, Approved::Size { size: SIZE, .. })
    }

    #[test]
    fn a_good_approval_counts() {
        let key = key();
        let vm = vm(&approve(&key, "uid", 1, 1));
        let approved = judge(&vm, "uid", key.public_key().as_ref());
        assert_eq!(approved, Approved::Size { size: SIZE, age: (1, 1) });
    }

    #[test]
    fn forged_moved_changed_and_damaged_approvals_do_not_count() {
        let (key, other) = (key(), self::key());
        let good = approve(&key, "uid", 1, 1);
        assert!(!opens(&vm(&approve(&other, "uid", 1, 1)), "uid", &key), "another key");
        assert!(!opens(&vm(&good), "other-uid", &key), "another VM");
        let mut larger = good.clone();
        larger.size.memory = Bytes(64 << 30);
        assert!(matches!(
            judge(&vm(&larger), "uid", key.public_key().as_ref()),
            Approved::Missing(_)
        ));
        let mut newer = good.clone();
        newer.generation = 9;
        assert!(!opens(&vm(&newer), "uid", &key), "another generation");
        for annotation in [names::ANNOTATION_APPROVED, names::ANNOTATION_APPROVED_PROOF] {
            let mut half = vm(&good);
            half.metadata.annotations.as_mut().unwrap().remove(annotation);
            assert!(!opens(&half, "uid", &key), "{annotation} is missing");
            half.metadata
                .annotations
                .as_mut()
                .unwrap()
                .insert(annotation.to_owned(), "{".to_owned());
            assert!(!opens(&half, "uid", &key), "{annotation} is damaged");
        }
        assert!(!opens(&vm(&good), "uid", &other), "an empty or wrong public key");
        assert!(opens(&vm(&good), "uid", &key), "none of them spoiled the good one");
    }
}
