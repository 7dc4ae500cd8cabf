//! The plug's gate: which approval of the scheduler counts.
//!
//! An approval is a size, signed for one VM with an epoch and a generation. It counts if the signature holds
//! and it is not older than one that was seen before: otherwise an old annotation, written back by somebody,
//! would open the gate again.

use controller_api::{Approval, VirtualMachine};
use controller_lifecycle::Approved;
use ring::signature::{ED25519, UnparsedPublicKey};

/// The gate of one VM.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The newest approval seen.
    newest: Option<(u64, u64)>,
}

impl Gate {
    /// What the VM's annotations approve, judged with the extender's public key.
    pub(crate) fn judge(&mut self, vm: &VirtualMachine, uid: &str, public_key: &[u8]) -> Approved {
        match self.check(vm, uid, public_key) {
            Ok(approval) => Approved::Size(approval.size),
            Err(reason) => Approved::Missing(reason),
        }
    }

    fn check(
        &mut self,
        vm: &VirtualMachine,
        uid: &str,
        public_key: &[u8],
    ) -> Result<Approval, String> {
        let annotations = vm.metadata.annotations.clone().unwrap_or_default();
        let approval = Approval::from_annotations(&annotations)
            .map_err(|err| format!("the scheduler's approval cannot be read: {err}"))?
            .ok_or_else(|| "the scheduler has approved nothing yet".to_owned())?;
        let signature = approval
            .signature_bytes()
            .map_err(|err| format!("the scheduler's approval cannot be read: {err}"))?;
        UnparsedPublicKey::new(&ED25519, public_key)
            .verify(&approval.signing_bytes(uid), &signature)
            .map_err(|_| "the signature of the scheduler's approval does not hold".to_owned())?;
        if self.newest.is_some_and(|newest| approval.age() < newest) {
            return Err("the scheduler's approval is older than one seen before".to_owned());
        }
        self.newest = Some(approval.age());
        Ok(approval)
    }
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

    fn opens(gate: &mut Gate, vm: &VirtualMachine, uid: &str, key: &Ed25519KeyPair) -> bool {
        gate.judge(vm, uid, key.public_key().as_ref()) == Approved::Size(SIZE)
    }

    #[test]
    fn a_good_approval_counts() {
        let key = key();
        let mut gate = Gate::default();
        let vm = vm(&approve(&key, "uid", 1, 1));
        assert!(opens(&mut gate, &vm, "uid", &key));
        assert!(opens(&mut gate, &vm, "uid", &key), "again and again");
    }

    #[test]
    fn forged_moved_changed_and_damaged_approvals_do_not_count() {
        let (key, other) = (key(), self::key());
        let good = approve(&key, "uid", 1, 1);
        let mut gate = Gate::default();
        assert!(!opens(&mut gate, &vm(&approve(&other, "uid", 1, 1)), "uid", &key), "another key");
        assert!(!opens(&mut gate, &vm(&good), "other-uid", &key), "another VM");
        let mut larger = good.clone();
        larger.size.memory = Bytes(64 << 30);
        assert!(matches!(
            gate.judge(&vm(&larger), "uid", key.public_key().as_ref()),
            Approved::Missing(_)
        ));
        let mut newer = good.clone();
        newer.generation = 9;
        assert!(!opens(&mut gate, &vm(&newer), "uid", &key), "another generation");
        for annotation in [names::ANNOTATION_APPROVED, names::ANNOTATION_APPROVED_PROOF] {
            let mut half = vm(&good);
            half.metadata.annotations.as_mut().unwrap().remove(annotation);
            assert!(!opens(&mut gate, &half, "uid", &key), "{annotation} is missing");
            half.metadata
                .annotations
                .as_mut()
                .unwrap()
                .insert(annotation.to_owned(), "{".to_owned());
            assert!(!opens(&mut gate, &half, "uid", &key), "{annotation} is damaged");
        }
        assert!(!opens(&mut gate, &vm(&good), "uid", &other), "an empty or wrong public key");
        assert!(opens(&mut gate, &vm(&good), "uid", &key), "none of them spoiled the good one");
    }

    #[test]
    fn an_older_approval_does_not_count_any_more() {
        let key = key();
        let mut gate = Gate::default();
        assert!(opens(&mut gate, &vm(&approve(&key, "uid", 2, 5)), "uid", &key));
        assert!(!opens(&mut gate, &vm(&approve(&key, "uid", 2, 4)), "uid", &key));
        assert!(!opens(&mut gate, &vm(&approve(&key, "uid", 1, 9)), "uid", &key));
        assert!(opens(&mut gate, &vm(&approve(&key, "uid", 3, 0)), "uid", &key));
    }
}
