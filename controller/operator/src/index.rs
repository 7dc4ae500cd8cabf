//! All VirtualMachines and their pods as the watches show them, one entry for each VM.
//!
//! Synchronous and owned by one task. A VM is known by its UID: one that is deleted and made again is another
//! VM, and its predecessor's pods are not its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use controller_api::VirtualMachine;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

/// What is known of one VM.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    /// The object; `None` once it is gone.
    pub(crate) vm: Option<Arc<VirtualMachine>>,
    /// The pods that it owns, by name.
    pub(crate) pods: BTreeMap<String, Arc<Pod>>,
}

#[derive(Debug, Default)]
struct Entry {
    snapshot: Snapshot,
    /// Tells the VM's task; there is none before both lists are complete.
    tell: Option<watch::Sender<Snapshot>>,
}

/// A VM whose task is to be started.
pub(crate) struct Fresh {
    pub(crate) uid: String,
    pub(crate) snapshots: watch::Receiver<Snapshot>,
}

/// All VMs.
#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: HashMap<String, Entry>,
    vms_listed: bool,
    pods_listed: bool,
    /// Objects not seen yet in the list under way: VMs by UID, pods by UID of their VM and name.
    unseen_vms: BTreeSet<String>,
    unseen_pods: BTreeSet<(String, String)>,
}

impl Index {
    pub(crate) fn vm_event(&mut self, event: Event<VirtualMachine>) -> Vec<Fresh> {
        match event {
            Event::Init => {
                let known = self.entries.iter().filter(|(_, entry)| entry.snapshot.vm.is_some());
                self.unseen_vms = known.map(|(uid, _)| uid.clone()).collect();
            }
            Event::Apply(vm) | Event::InitApply(vm) => {
                if let Some(uid) = vm.uid() {
                    self.unseen_vms.remove(&uid);
                    self.entries.entry(uid.clone()).or_default().snapshot.vm = Some(Arc::new(vm));
                    self.tell(&uid);
                }
            }
            Event::Delete(vm) => self.vm_gone(&vm.uid().unwrap_or_default()),
            Event::InitDone => {
                for uid in std::mem::take(&mut self.unseen_vms) {
                    self.vm_gone(&uid);
                }
                self.vms_listed = true;
            }
        }
        self.fresh()
    }

    pub(crate) fn pod_event(&mut self, event: Event<Pod>) -> Vec<Fresh> {
        match event {
            Event::Init => {
                self.unseen_pods = self
                    .entries
                    .iter()
                    .flat_map(|(uid, entry)| {
                        entry.snapshot.pods.keys().map(|name| (uid.clone(), name.clone()))
                    })
                    .collect();
            }
            Event::Apply(pod) | Event::InitApply(pod) => {
                let name = pod.name_any();
                match owner(&pod) {
                    Some(uid) => {
                        self.unseen_pods.remove(&(uid.clone(), name.clone()));
                        let entry = self.entries.entry(uid.clone()).or_default();
                        entry.snapshot.pods.insert(name, Arc::new(pod));
                        self.tell(&uid);
                    }
                    // A pod that was released from its VM.
                    None => self.pod_released(&pod),
                }
            }
            Event::Delete(pod) => match owner(&pod) {
                Some(uid) => self.pod_gone(&uid, &pod.name_any()),
                None => self.pod_released(&pod),
            },
            Event::InitDone => {
                for (uid, name) in std::mem::take(&mut self.unseen_pods) {
                    self.pod_gone(&uid, &name);
                }
                self.pods_listed = true;
            }
        }
        self.fresh()
    }

    /// How many VMs there are.
    pub(crate) fn vms(&self) -> usize {
        self.entries.values().filter(|entry| entry.snapshot.vm.is_some()).count()
    }

    fn vm_gone(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.snapshot.vm = None;
            self.tell(uid);
            self.clean(uid);
        }
    }

    fn pod_gone(&mut self, uid: &str, name: &str) {
        if let Some(entry) = self.entries.get_mut(uid)
            && entry.snapshot.pods.remove(name).is_some()
        {
            self.tell(uid);
            self.clean(uid);
        }
    }

    fn pod_released(&mut self, pod: &Pod) {
        let (pod_uid, name) = (pod.uid(), pod.name_any());
        let held = self.entries.iter().find(|(_, entry)| {
            entry.snapshot.pods.get(&name).is_some_and(|held| held.uid() == pod_uid)
        });
        if let Some(uid) = held.map(|(uid, _)| uid.clone()) {
            self.pod_gone(&uid, &name);
        }
    }

    /// An entry without VM and pods is forgotten; dropping the sender ends the VM's task.
    fn clean(&mut self, uid: &str) {
        let empty = |entry: &Entry| entry.snapshot.vm.is_none() && entry.snapshot.pods.is_empty();
        if self.entries.get(uid).is_some_and(empty) {
            self.entries.remove(uid);
        }
    }

    fn tell(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get(uid)
            && let Some(tell) = &entry.tell
        {
            tell.send_replace(entry.snapshot.clone());
        }
    }

    fn fresh(&mut self) -> Vec<Fresh> {
        if !(self.vms_listed && self.pods_listed) {
            return Vec::new();
        }
        let idle = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.tell.is_none() && entry.snapshot.vm.is_some());
        idle.map(|(uid, entry)| {
            let (tell, snapshots) = watch::channel(entry.snapshot.clone());
            entry.tell = Some(tell);
            Fresh { uid: uid.clone(), snapshots }
        })
        .collect()
    }
}

/// The UID of the VM that owns this pod.
fn owner(pod: &Pod) -> Option<String> {
    let owners = pod.metadata.owner_references.as_ref()?;
    let vm = owners.iter().find(|owner| {
        owner.kind == "VirtualMachine" && owner.api_version.starts_with("vm.neon.tech/")
    })?;
    Some(vm.uid.clone())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use serde_json::json;

    use super::*;

    fn vm(uid: &str) -> VirtualMachine {
        serde_json::from_value(json!({
            "apiVersion": "vm.neon.tech/v1", "kind": "VirtualMachine",
            "metadata": {"name": "vm", "namespace": "default", "uid": uid},
            "spec": {"guest": {
                "cpus": {"min": 1, "max": 1, "use": 1},
                "memorySlots": {"min": 1, "max": 1, "use": 1},
                "rootDisk": {"image": "image"},
            }},
        }))
        .unwrap()
    }

    fn pod(name: &str, vm: Option<&str>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid = Some(format!("uid-of-{name}"));
        pod.metadata.owner_references = vm.map(|uid| {
            vec![OwnerReference {
                api_version: "vm.neon.tech/v1".into(),
                kind: "VirtualMachine".into(),
                name: "vm".into(),
                uid: uid.into(),
                ..OwnerReference::default()
            }]
        });
        pod
    }

    fn listed(index: &mut Index) -> Vec<Fresh> {
        assert!(index.vm_event(Event::Init).is_empty());
        assert!(index.vm_event(Event::InitApply(vm("a"))).is_empty());
        assert!(index.vm_event(Event::InitDone).is_empty(), "the pods are not known yet");
        assert!(index.pod_event(Event::Init).is_empty());
        assert!(index.pod_event(Event::InitApply(pod("vm-1", Some("a")))).is_empty());
        index.pod_event(Event::InitDone)
    }

    #[test]
    fn a_task_starts_when_both_lists_are_complete_and_hears_of_every_change() {
        let mut index = Index::default();
        let mut fresh = listed(&mut index);
        assert_eq!(fresh.len(), 1);
        let mut snapshots = fresh.remove(0).snapshots;
        assert_eq!(snapshots.borrow_and_update().pods.len(), 1);
        assert!(index.pod_event(Event::Apply(pod("vm-2", Some("a")))).is_empty());
        assert!(snapshots.has_changed().unwrap());
        assert_eq!(snapshots.borrow_and_update().pods.len(), 2);
        index.pod_event(Event::Delete(pod("vm-1", Some("a"))));
        assert_eq!(snapshots.borrow_and_update().pods.len(), 1);
        assert_eq!(index.vm_event(Event::Apply(vm("b"))).len(), 1);
        assert_eq!(index.vms(), 2);
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let mut index = Index::default();
        let mut snapshots = listed(&mut index).remove(0).snapshots;
        index.pod_event(Event::Init);
        index.pod_event(Event::InitDone);
        assert!(snapshots.borrow_and_update().pods.is_empty());
        index.vm_event(Event::Init);
        index.vm_event(Event::InitDone);
        assert!(snapshots.has_changed().is_err(), "the task ends");
        assert_eq!(index.vms(), 0);
    }

    #[test]
    fn a_released_pod_no_longer_counts() {
        let mut index = Index::default();
        let mut snapshots = listed(&mut index).remove(0).snapshots;
        index.pod_event(Event::Apply(pod("vm-1", None)));
        assert!(snapshots.borrow_and_update().pods.is_empty());
    }

    #[test]
    fn a_vm_made_again_under_the_same_name_is_another_one() {
        let mut index = Index::default();
        let old = listed(&mut index).remove(0).snapshots;
        assert_eq!(index.vm_event(Event::Apply(vm("b"))).len(), 1);
        index.vm_event(Event::Delete(vm("a")));
        assert!(old.borrow().vm.is_none());
        assert_eq!(old.borrow().pods.len(), 1, "its pod is still there");
        index.pod_event(Event::Delete(pod("vm-1", Some("a"))));
        assert!(old.has_changed().is_err());
    }
}
