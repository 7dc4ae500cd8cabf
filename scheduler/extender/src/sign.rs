//! Approvals are signed here, and those in objects are checked.

use std::path::PathBuf;
use std::sync::Arc;

use controller_api::{Approval, VirtualMachine};
use guest_units::Chain;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use scheduler_ledger::Seal;

use crate::files::{FileError, Reloaded};

/// The key. The operator makes it, and can replace it.
#[derive(Clone)]
pub(crate) struct Signer(Arc<Reloaded<Ed25519KeyPair>>);

impl Signer {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(Arc::new(Reloaded::new([path], |contents| {
            let key = contents.first().map_or(&[][..], Vec::as_slice);
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(key)
                .map_err(|err| FileError::content("the signing key", err.to_string()))
        })))
    }

    /// Whether there is a usable key.
    pub(crate) fn check(&self) -> Result<(), FileError> {
        self.0.get().map(drop)
    }

    pub(crate) fn sign(&self, vm_uid: &str, seal: Seal) -> Result<Approval, FileError> {
        let key = self.0.get()?;
        let Seal { epoch, generation, size } = seal;
        Ok(Approval::signed(vm_uid, size, epoch, generation, |bytes| {
            key.sign(bytes).as_ref().to_vec()
        }))
    }

    /// The approval that an object shows, if it is one of ours and for this very VM. The operator honours no other.
    pub(crate) fn visible(&self, vm: &VirtualMachine) -> Option<Seal> {
        let approval = match Approval::from_annotations(vm.metadata.annotations.as_ref()?) {
            Ok(approval) => approval?,
            Err(err) => {
                tracing::warn!(
                    vm = vm.metadata.name, namespace = vm.metadata.namespace, error = %Chain(&err),
                    "the approval in the object is not readable"
                );
                return None;
            }
        };
        let key = self.0.get().ok()?;
        let signature = approval.signature_bytes().ok()?;
        let bytes = approval.signing_bytes(vm.metadata.uid.as_deref()?);
        let public = UnparsedPublicKey::new(&ED25519, key.public_key().as_ref());
        public.verify(&bytes, &signature).ok()?;
        let Approval { size, epoch, generation, signature: _ } = approval;
        Some(Seal { epoch, generation, size })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use guest_units::{Bytes, MilliCpu, Size};
    use ring::rand::SystemRandom;

    /// A signer with a key of its own.
    pub(crate) fn signer(name: &str) -> Signer {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let path = std::env::temp_dir().join(format!("sign-{name}-{}.pk8", std::process::id()));
        std::fs::write(&path, key.as_ref()).unwrap();
        Signer::new(path)
    }

    pub(crate) fn vm(uid: &str) -> VirtualMachine {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine",
            "metadata": {"name": "pg", "namespace": "default", "uid": uid},
            "spec": {"guest": {
                "cpus": {"min": "250m", "use": 1, "max": 4},
                "memorySlotSize": "1Gi", "memorySlots": {"min": 1, "use": 2, "max": 8},
                "rootDisk": {"image": "x"}
            }}
        }))
        .unwrap()
    }

    #[test]
    fn only_our_approval_of_this_vm_is_visible() {
        let signer = signer("mine");
        let seal = Seal {
            epoch: 3,
            generation: 9,
            size: Size { cpu: MilliCpu(1500), memory: Bytes::from_gib(2) },
        };
        let mut vm = vm("u1");
        assert_eq!(signer.visible(&vm), None);
        vm.metadata.annotations = Some(signer.sign("u1", seal).unwrap().to_annotations());
        assert_eq!(signer.visible(&vm), Some(seal));
        assert_eq!(self::signer("other").visible(&vm), None, "another key");
        vm.metadata.uid = Some("u2".into());
        assert_eq!(signer.visible(&vm), None, "another VM");
        vm.metadata.annotations =
            Some([(controller_api::names::ANNOTATION_APPROVED.to_owned(), "{}".to_owned())].into());
        assert_eq!(signer.visible(&vm), None, "nonsense");
    }

    #[test]
    fn a_missing_key_is_an_error_and_not_a_panic() {
        let signer = Signer::new("/does/not/exist".into());
        assert!(signer.check().is_err());
    }
}
