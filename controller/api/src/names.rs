//! Labels, annotations, resources and service accounts by name.

/// Set to `"true"` by a user: the VM is autoscaled.
pub const LABEL_AUTOSCALING_ENABLED: &str = "autoscaling.neon.tech/enabled";
/// Set to `"true"` by a user: the scheduler may move the VM to another node.
pub const LABEL_MOVABLE: &str = "autoscaling.neon.tech/auto-migration-enabled";
/// The same, for tests.
pub const LABEL_MOVABLE_FOR_TESTS: &str = "autoscaling.neon.tech/testing-only-always-migrate";
/// `"true"` on migrations that the scheduler has made.
pub const LABEL_BY_SCHEDULER: &str = "autoscaling.neon.tech/created-by-scheduler";
/// Copied into metrics and events.
pub const LABEL_ENDPOINT_ID: &str = "neon/endpoint-id";
/// Copied into metrics and events.
pub const LABEL_PROJECT_ID: &str = "neon/project-id";

/// Replaces minimum and maximum for autoscaling; see [`crate::Bounds`].
pub const ANNOTATION_BOUNDS: &str = "autoscaling.neon.tech/bounds";
/// Per-VM scaling configuration, JSON.
pub const ANNOTATION_CONFIG: &str = "autoscaling.neon.tech/config";
/// Chooses the VM's scaling policy by name; without it the agent's configuration does.
pub const ANNOTATION_POLICY: &str = "autoscaling.neon.tech/policy";
/// What the agent asked for last, Resources JSON.
pub const ANNOTATION_REQUESTED: &str = "internal.autoscaling.neon.tech/resources-requested";
/// What is promised to the VM, Resources JSON; see [`crate::Approval`].
pub const ANNOTATION_APPROVED: &str = "internal.autoscaling.neon.tech/resources-approved";
/// The proof of [`ANNOTATION_APPROVED`].
pub const ANNOTATION_APPROVED_PROOF: &str =
    "internal.autoscaling.neon.tech/resources-approved-proof";
/// Annotations that agents write on VM objects.
pub const AGENT_ANNOTATIONS: [&str; 2] = [ANNOTATION_APPROVED, ANNOTATION_APPROVED_PROOF];
/// Annotations that begin so are the system's own on a pod; never copied from a VM.
pub const INTERNAL_PREFIX: &str = "internal.neon.tech/";
/// What `kubectl apply` leaves on an object; never copied to the pod.
pub const ANNOTATION_LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// On runner pods: the VM's name; the way to select a VM's pods.
pub const LABEL_VM_NAME: &str = "vm.neon.tech/name";
/// On runner pods.
pub const LABEL_APP: &str = "app.kubernetes.io/name";
/// Value of [`LABEL_APP`].
pub const APP: &str = "NeonVM";
/// On runner pods: the present size, JSON `{cpu, memory}`.
pub const ANNOTATION_USAGE: &str = "vm.neon.tech/usage";
/// On runner pods: bounds and present size, JSON.
pub const ANNOTATION_RESOURCES: &str = "vm.neon.tech/resources";
/// On runner pods, if the VM has any: divisors of the cost, JSON.
pub const ANNOTATION_OVERCOMMIT: &str = "vm.neon.tech/overcommit";
/// On runner pods: which container `kubectl logs` and `kubectl exec` mean.
pub const ANNOTATION_DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// The container that runs the VM.
pub const RUNNER_CONTAINER: &str = "neonvm-runner";
/// On runner pods: the scheduler has read the pod anew since it took over.
pub const CONDITION_FENCED: &str = "autoscaling.neon.tech/Fenced";
/// Annotations of a runner pod that belong to the pod's network and are left alone.
pub const FOREIGN_ANNOTATIONS: [&str; 3] = [
    "k8s.v1.cni.cncf.io/networks",
    "k8s.v1.cni.cncf.io/network-status",
    "k8s.v1.cni.cncf.io/networks-status",
];

/// Extended resource: the network device, one for each VM.
pub const RESOURCE_TUN: &str = "neonvm/tun";
/// Extended resource: hardware virtualisation.
pub const RESOURCE_KVM: &str = "neonvm/kvm";

/// Namespace of the controller.
pub const SYSTEM_NAMESPACE: &str = "neonvm-system";
/// Namespace of scheduler and agents.
pub const KUBE_SYSTEM: &str = "kube-system";
/// ConfigMap (in [`SYSTEM_NAMESPACE`]) with the objects whose updates are not checked.
pub const SKIP_UPDATE_VALIDATION: &str = "neonvm-skip-update-validation";
/// Key in it: comma-separated `name` (namespace `default`) or `namespace/name`.
pub const SKIP_UPDATE_VALIDATION_KEY: &str = "objects";

/// User name of the controller.
pub const USER_CONTROLLER: &str = "system:serviceaccount:neonvm-system:neonvm-controller";
/// User name of the agents.
pub const USER_AGENT: &str = "system:serviceaccount:kube-system:autoscaler-agent";
/// Service (in [`KUBE_SYSTEM`]) of the scheduler's extender.
pub const SCHEDULER_SERVICE: &str = "autoscale-scheduler";
/// User name of the scheduler's extender.
pub const USER_EXTENDER: &str = "system:serviceaccount:kube-system:autoscale-scheduler";
/// User names of the garbage collector, which takes owners that are gone off an object.
pub const USERS_GARBAGE_COLLECTOR: [&str; 2] = [
    "system:serviceaccount:kube-system:generic-garbage-collector",
    "system:kube-controller-manager",
];
/// Key in a bound token's user information that holds the node's name.
pub const USER_EXTRA_NODE: &str = "authentication.kubernetes.io/node-name";
