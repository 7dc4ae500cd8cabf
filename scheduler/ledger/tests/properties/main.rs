//! Random operations around a ledger, against what is really true outside of it.
//!
//! The world here loses, delays and repeats: answers may never be used, used late, put back by users, or used after the ledger
//! began again; orders to the hypervisor apply what was approved some time ago; the object is shown late; resizes and
//! bindings have unknown ends; pods come, are bound and end; other schedulers place pods without asking.
//!
//! What must hold after each step, whatever happened:
//! - no hypervisor grows beyond the largest approval that is not older than the one the operator obeys;
//! - everything that could still be plugged is backed by what kubelet has allocated;
//! - no node is overcommitted by what is plugged and what pods request, and the ledger promises no more than there is;
//! - what the ledger keeps is what the naive model (`model.rs`) adds up from all that was told and said, no approval is given
//!   twice or by a ledger that does not lead or does not know everything, and every request ends in time.

mod many;
mod model;
mod run;
#[path = "../support/mod.rs"]
mod support;

use proptest::prelude::*;
use scheduler_ledger::Answer;
use scheduler_protocol::RefusalCode;

use crate::run::{NODES, Run, VMS};
use crate::support::Done;

#[derive(Debug, Clone)]
enum Op {
    Ask {
        vm: usize,
        cpu: u32,
        gib: u64,
        least: u32,
        stale: bool,
    },
    /// A request or a change of the spec that goes through without a fault, up to the object.
    Grant {
        vm: usize,
        cpu: u32,
        gib: u64,
    },
    /// What is on its way to the API server and kubelets gets there.
    Work,
    /// The operator looks and says what it sees, and the ledger reads it.
    Sync {
        vm: usize,
    },
    /// The agent writes the answer it was given last, if it still can.
    Patch {
        vm: usize,
    },
    /// The agent loses the answer.
    Lose {
        vm: usize,
    },
    /// A user puts an earlier approval back.
    PutBack {
        vm: usize,
        index: usize,
    },
    /// The API server takes what is on its way, refuses it, or takes it and the answer is lost.
    Api {
        outcome: u8,
    },
    /// A resize of unknown end arrives after all.
    Late,
    Kubelet {
        vm: usize,
    },
    /// The operator orders what the object says.
    Order {
        vm: usize,
    },
    /// An order reaches the hypervisor.
    Land {
        vm: usize,
        part: u8,
    },
    /// The operator looks at the hypervisor; what it sees is written later.
    Observe {
        vm: usize,
        running: bool,
    },
    Report {
        vm: usize,
    },
    /// Another operator leads.
    Operator,
    /// The watches show a VM and its pod.
    See {
        vm: usize,
    },
    /// The watch shows a VM as it was before the operator's last word.
    SeeLate {
        vm: usize,
    },
    Use {
        vm: usize,
        cpu: u32,
        gib: u64,
    },
    /// The VM's pod ends.
    End {
        vm: usize,
    },
    /// The operator makes the next pod.
    Start {
        vm: usize,
    },
    Bind {
        vm: usize,
        node: usize,
        outcome: u8,
    },
    /// Another scheduler places a pod where the API server shows room.
    Place {
        node: usize,
        cpu: u64,
        gib: u64,
    },
    Remove {
        index: usize,
    },
    Pass {
        ms: u64,
    },
    /// The process dies, and another one begins with nothing: it is told everything now, or list by list.
    Restart {
        order: usize,
    },
    /// The next list comes.
    List,
    Lease {
        lost: bool,
    },
    /// Nothing goes wrong for a while.
    Calm {
        large: usize,
    },
    /// Something of a migration of a VM goes on.
    Move {
        vm: usize,
        step: Step,
    },
    /// The lease is held again, and nobody had it meanwhile: the epoch is as before.
    Regain,
}

/// As often as half of all else.
const MOVES: u32 = 48;

/// What goes on of a migration.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The watch shows it, and all goes well until the target is there.
    Onward,
    /// The watch shows it.
    Seen,
    /// Somebody makes one by hand.
    ByHand,
    /// The operator makes the target.
    Target,
    /// The target is bound, or nobody knows.
    Bind { outcome: u8 },
    /// Kubelet admits the target, or has no room.
    Admit,
    /// The VM runs on the target.
    Well,
    /// It does not, and the target goes.
    Badly,
    /// The source goes.
    SourceGone,
    /// The object is deleted, which ends it.
    Deleted,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => Just(Step::Onward),
        12 => Just(Step::Seen),
        1 => Just(Step::ByHand),
        10 => Just(Step::Target),
        12 => (0_u8..8).prop_map(|outcome| Step::Bind { outcome }),
        12 => Just(Step::Admit),
        10 => Just(Step::Well),
        3 => Just(Step::Badly),
        6 => Just(Step::SourceGone),
        2 => Just(Step::Deleted),
    ]
}

/// `moves`: how often something of a move goes on, and all is calm before.
fn op(moves: u32) -> impl Strategy<Value = Op> {
    let vm = 0..VMS;
    let of = |make: fn(usize) -> Op| vm.clone().prop_map(make);
    prop_oneof![
        6 => (vm.clone(), 1_u32..24, 1_u64..8, 1_u32..24, prop::bool::weighted(0.1)).prop_map(
            |(vm, cpu, gib, least, stale)| Op::Ask { vm, cpu: cpu * 250, gib, least: least * 250, stale }
        ),
        8 => (vm.clone(), 1_u32..24, 1_u64..8).prop_map(|(vm, cpu, gib)| Op::Grant { vm, cpu: cpu * 250, gib }),
        6 => Just(Op::Work),
        8 => of(|vm| Op::Sync { vm }),
        4 => of(|vm| Op::Patch { vm }),
        1 => of(|vm| Op::Lose { vm }),
        2 => (vm.clone(), 0_usize..20).prop_map(|(vm, index)| Op::PutBack { vm, index }),
        6 => (0_u8..10).prop_map(|outcome| Op::Api { outcome }),
        2 => Just(Op::Late),
        6 => of(|vm| Op::Kubelet { vm }),
        4 => of(|vm| Op::Order { vm }),
        4 => (vm.clone(), 0_u8..4).prop_map(|(vm, part)| Op::Land { vm, part }),
        4 => (vm.clone(), any::<bool>()).prop_map(|(vm, running)| Op::Observe { vm, running }),
        4 => of(|vm| Op::Report { vm }),
        1 => Just(Op::Operator),
        8 => of(|vm| Op::See { vm }),
        2 => of(|vm| Op::SeeLate { vm }),
        2 => (vm.clone(), 1_u32..24, 1_u64..8).prop_map(|(vm, cpu, gib)| Op::Use { vm, cpu: cpu * 250, gib }),
        1 => of(|vm| Op::End { vm }),
        2 => of(|vm| Op::Start { vm }),
        3 => (vm.clone(), 0..NODES.len(), 0_u8..6).prop_map(|(vm, node, outcome)| Op::Bind { vm, node, outcome }),
        3 => (0..NODES.len(), 0_u64..4, 0_u64..4).prop_map(
            |(node, cpu, gib)| Op::Place { node, cpu: cpu * 500, gib }
        ),
        2 => (0_usize..8).prop_map(|index| Op::Remove { index }),
        3 => (1_u64..3000).prop_map(|ms| Op::Pass { ms }),
        1 => Just(Op::Pass { ms: 31_000 }),
        1 => (0_usize..6).prop_map(|order| Op::Restart { order }),
        4 => Just(Op::List),
        1 => any::<bool>().prop_map(|lost| Op::Lease { lost }),
        1 => Just(Op::Regain),
        1 + moves / 16 => of(|large| Op::Calm { large }),
        1 + moves => (vm, step()).prop_map(|(vm, step)| Op::Move { vm, step }),
    ]
}

fn go(mut run: Run, ops: &[Op]) {
    run.check();
    for op in ops {
        run.step(op);
    }
    run.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_promised_that_is_not_there(ops in prop::collection::vec(op(0), 1..150)) {
        go(Run::new(), &ops);
    }

    #[test]
    fn nothing_is_promised_that_is_not_there_with_leases(ops in prop::collection::vec(op(0), 1..150)) {
        go(Run::leased(), &ops);
    }

    #[test]
    fn nothing_is_promised_that_is_not_there_while_vms_move(ops in prop::collection::vec(op(MOVES), 1..150)) {
        go(Run::moving(), &ops);
    }
}

#[test]
fn a_stale_request_changes_nothing() {
    let mut run = Run::new();
    run.see(0);
    run.ask(0, 1000, 1, 1000, false);
    run.ask(0, 1000, 1, 1000, false);
    run.collect();
    let before = run.world.ledger.dump();
    run.ask(0, 6000, 8, 250, true);
    let done = run.world.take();
    assert!(matches!(
        &done[..],
        [Done::Answer(_, Answer::Refused { code: RefusalCode::Stale, .. })]
    ));
    assert_eq!(run.world.ledger.dump(), before);
}

#[test]
fn a_late_shrink_never_takes_what_was_granted_meanwhile() {
    let mut run = Run::new();
    run.apply(&Op::Grant { vm: 0, cpu: 4000, gib: 2 });
    run.apply(&Op::Land { vm: 0, part: 0 });
    run.apply(&Op::Sync { vm: 0 });
    run.ask(0, 1000, 2, 1000, false);
    run.collect();
    run.patch(0);
    run.order(0);
    run.land(0, 0);
    run.apply(&Op::Sync { vm: 0 });
    assert_eq!(run.orders.len(), 1, "the requests are to be lowered");
    // Nobody knows whether they were; meanwhile the VM wants it all back.
    run.apply(&Op::Api { outcome: 2 });
    run.see(0);
    run.ask(0, 4000, 2, 4000, false);
    run.collect();
    run.patch(0);
    run.check();
    run.arrive_late();
    run.kubelet(0);
    run.check();
    run.settle();
}
