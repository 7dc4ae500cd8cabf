//! Deliberate bugs, for tests alone: what the search must find, or it is no search.

/// A part that does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Bug {
    /// The agent takes a veto for consent.
    AgentForgetsVeto,
    /// The operator orders whatever the spec asks for.
    OperatorIgnoresGate,
    /// The runner carries out orders that are older than others it has seen.
    RunnerTakesOldOrders,
    /// The runner takes memory although the guest refuses.
    RunnerIgnoresVeto,
    /// The extender tells the ledger that kubelet has allocated whatever was ordered.
    ExtenderBelievesOrders,
    /// An extender that takes the lease goes on with the epoch of the one before.
    ExtenderKeepsEpoch,
    /// After a relist the extender forgets what is gone, and says that pods are which are not.
    ExtenderForgetsPods,
    /// Permit requests that arrive while another is open are dropped without an answer.
    ExtenderDropsRequests,
    /// The extender does not hear that a pod waits for room, and leases do not give way to it.
    ExtenderKeepsLeases,
    /// The extender grants nobody more than is approved already.
    ExtenderGrantsNothing,
    /// The guest's policy does not see memory that the workload holds.
    GuestOverlooksMemory,
    /// The operator deletes the pod of a VM whose runner it cannot reach.
    OperatorKillsUnreachable,
    /// An agent lets a guest's word through unbounded and unlimited.
    AgentBelievesGuest,
    /// After a restart the operator does not follow the runners.
    OperatorForgetsRunners,
    /// The agent does not know of the maximum.
    AgentIgnoresMaximum,
    /// The agent does not know of the minimum.
    AgentIgnoresMinimum,
    /// The agent takes a patch that failed for written.
    AgentTrustsPatches,
    /// Whoever watches drops what comes late.
    WatchersDropWhatIsLate,
    /// The agent takes a guest that does not answer for one that agrees.
    AgentTakesSilenceForConsent,
    /// The agent does not raise its numbers where the scheduler has seen higher ones.
    AgentIgnoresNewest,
    /// The agent never listens again to a guest that once spoke the version before.
    AgentShutsOutOldGuests,
    /// After its watch has broken off, the operator does not list anew.
    OperatorForgetsRelist,
    /// The operator takes every order for done.
    OperatorBelievesOrders,
    /// The operator does not notice that a pod has ended.
    OperatorIgnoresPodEnds,
    /// A new operator does not know of the pods of the one before.
    OperatorForgetsPods,
    /// The operator does not wait until the old pod is gone where it has to.
    OperatorAllowsTwoPods,
    /// The operator gives two orders the same number.
    OperatorRepeatsNumbers,
    /// The extender gives two approvals the same number.
    ExtenderRepeatsNumbers,
    /// The extender takes back what the spec no longer asks for, before it is unplugged.
    ExtenderShrinksEarly,
    /// The runner takes memory long after the guest has agreed.
    RunnerActsLongAfterConsent,
    /// A runner ends, and QEMU with it, when it is sent an order that is too old.
    RunnerEndsWhenOrdersAreStale,
    /// An extender goes on granting when it could not renew its lease in time.
    ExtenderOutstaysLease,
    /// An extender takes a lease that was given back for one that is held.
    ExtenderIgnoresRelease,
    /// An extender that does not hold the lease grants all the same, when it is asked.
    StandbyGrants,
    /// The API server takes writes for what the object was before.
    ApiTakesLateWrites,
    /// A fence reads the pod, and does not make it another version.
    FencesOnlyRead,
    /// An agent takes answers of an older epoch than it has had one of.
    AgentTakesOldEpochs,
    /// The agent never forgets the most that its guest has said to need.
    AgentForgetsNoPeak,
}
