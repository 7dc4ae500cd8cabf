//! The ledger: what is promised on every node, who may have more, and where a pod may go.
//!
//! ```text
//! nodes, pods, VMs --+                     +--> answers to agents
//! migrations --------+                     +--> pods/resize
//! permits asked -----+--> handle ... next -+--> approvals on VMs without an agent
//! ends of effects ---+                     +--> migrations, where VMs are moved ([`Moves`])
//!                          filter, prioritize, preempt, may_bind: questions, nothing changes
//! ```
//!
//! What always holds:
//! - On every node, for CPU and memory, no decision lets the sum of what pods request and VMs are promised exceed
//!   what the node has.
//! - A promise grows only after kubelet has allocated the requests that back it. It shrinks only after the operator says that
//!   it obeys a newer approval and the hypervisor shows the difference gone.
//! - Nothing frees a promise or a placement by the passing of time.
//! - The books can be thrown away: requests of pods, approvals and sizes in VM objects are enough to write them
//!   again. Until all pods and VMs were listed, nothing grows; requests are not lowered before the operator obeys an approval
//!   of this epoch, since an earlier ledger may have given one that is not known.
//! - A pod requests its promise and a lease of headroom ([`Lease`]), as far as the node has room: what is leased beyond the promise is
//!   given back first, to other growths and to pods that no scheduler can place.
//! - Where VMs are moved, the room for one is booked on its destination before its migration exists, and until its target is there:
//!   nothing that is decided here takes it. A VM has at most one migration of ours, and keeps its size until that has ended.
//! - Every request ends, within about [`Settings::hold`] plus [`Settings::resize_limit`], also one that waits for leases.
//!
//! Where the reference goes wrong and this crate, or `scheduler/extender` around it (marked E), does not; what both do; what is
//! better. Each with what shows it.
//!
//! | the reference | here | shown by |
//! |---|---|---|
//! | X50 a VM's pod without its annotation ends the process | it is read as it is, at the price that pods have unless they say otherwise | E `convert::the_overhead_is_nobodys_choice_and_the_price_is_the_pods`, `convert::a_pod_of_a_vm_without_the_container_is_an_ordinary_one`, `objects::a_vm_that_cannot_be_read_hides_no_other` |
//! | X51 without a scaling unit it divides by zero | no units are needed; steps of nothing are steps of one byte | `inconsistent::a_vm_without_steps_of_memory_is_permitted_all_the_same` |
//! | X52 finished pods count, init containers and overhead do not | Kubernetes' own rules | `facts::requests_follow_the_rules_of_kubernetes`, `facts::overhead_pod_level_and_allocated_count`, `inconsistent::a_pod_that_has_finished_takes_nothing_from_then_on`, E `convert::a_finished_pod_is_known_as_such` |
//! | X53 the largest node is the largest ever | of those there are | `standing::the_largest_follows_nodes_that_come_change_and_go` |
//! | X54, B7 freed capacity wakes nobody | it serves who waits, in order, without another request | `permits::room_that_appears_wakes_who_waits_in_order`, `leases::a_growth_without_room_takes_it_from_leases_and_is_served_without_asking_again`, `permits::equal_repeated_requests_change_nothing` |
//! | X55 replaces annotations that are not there | adds them, and tests what was read | E `effects::an_approval_replaces_only_what_was_read` |
//! | X56 what does not fit together ends the process | what is seen next puts it right | `inconsistent::what_does_not_fit_together_is_put_right_by_what_is_seen_next`, `placement::a_binding_that_nobody_confirms_counts_until_the_api_server_denies_it`, E `fencing::a_binding_of_unknown_end_counts_until_the_api_server_is_asked` |
//! | X57 moves VMs without a destination; a leftover object stands for a new one | room is booked before anything is ordered, no room means no move; each order has a name of its own | `moves::nobody_else_gets_the_room_that_is_booked`, `moves::without_a_destination_nobody_is_picked_and_the_dump_says_so`, `moves::a_move_that_comes_to_nothing_is_tried_again_later_each_time`, `many::many_operations_keep_the_rules` |
//! | X63 takes the first container for the runner | the one of that name, by in-place resize | E `effects::a_resize_touches_requests_of_the_main_container_only`, `convert::a_runner_pod_shows_spec_and_allocation` |
//! | X66 room of a growth under way is given again | it is reserved before it is ordered | `placement::room_that_is_promised_but_not_requested_yet_is_not_given_away`, `many::many_operations_keep_the_rules` |
//! | X69 a node costs what all nodes cost; start-up has a limit | constant; it ends when everything is known | `cargo bench --bench scale`, `permits::a_new_ledger_holds_growth_until_everything_was_listed` |
//! | X70 a resync is a change | equal values are not | `permits::an_unchanged_object_is_not_a_change` |
//! | M1 asked before an increase, told after a decrease | so here | `permits::growth_is_granted_only_when_kubelet_has_allocated_it`, `permits::what_is_given_back_returns_when_the_operator_obeys_and_the_hypervisor_shows_it` |
//! | M5 what is placed is never rejected afterwards | what is bound counts; a binding of ours looks again before it is made | `inconsistent::what_is_bound_counts_whether_there_is_room_or_not`, E `tests::a_binding_is_checked_and_posted` |
//! | M6 filter counts ignored namespaces | none is ignored | `inconsistent::pods_of_every_namespace_count_alike` |
//! | M7 no whole units; CPU and memory apart | so here | `vm::parts_are_whole_slots_and_respect_the_least`, `permits::a_full_node_gives_what_it_has_and_says_so` |
//! | M10 no size changes during a migration, no migration during a change | so here | `moves::who_moves_keeps_its_size_and_gets_what_it_asked_for_afterwards`, `moves::a_vm_that_does_not_rest_in_its_size_stays` |
//! | M21 packing score, random, best at 80 % | so here, seeded | `place::the_score_peaks_at_the_peak_and_follows_the_fuller_resource`, `place::spreading_is_even_over_pods_and_over_nodes_repeatable_and_seeded` |
//! | M22 the oldest are moved first, none above the watermark by itself | so here | `moves::the_oldest_leave_until_the_node_would_be_below_its_watermark`, `moves::a_vm_above_the_watermark_by_itself_stays` |
//! | M27 annotations carry what is asked and permitted | so here, what is permitted signed | E `tests::growth_goes_by_way_of_a_resize_to_a_signed_answer`, `limits::what_was_noted_about_a_vm_goes_with_it` |
//! | B1 | a permit within the lease is answered from memory in one turn, the note written behind it | `leases::growth_inside_a_lease_is_answered_in_the_same_turn` |
//! | B6 | of a migration: the destination first, an end to waiting for its target, later attempts after one that failed, what has ended is deleted | `moves::the_destination_stays_below_its_own_watermark_and_lets_the_vm_in`, `moves::a_target_that_does_not_come_ends_the_migration`, `moves::an_order_that_nobody_sees_is_given_up`, `moves::what_was_moved_rests` |
//! | B9 | a standby; a leader that stops in time; nothing is sent without the lease | `permits::a_new_ledger_takes_no_requests_away_that_an_older_answer_may_need`, `fence::what_an_earlier_leader_may_have_taken_backs_nothing_before_the_pod_is_fenced`, `moves::the_next_leader_keeps_the_room_of_migrations_and_decides_nothing_before_it_knows_them`, E `lease::a_holder_stops_before_another_begins`, `lease::a_lease_ends_by_itself_and_is_of_one_epoch`, `fencing::without_the_lease_nothing_is_sent` |
//!
//! What this crate does not know: clocks, Kubernetes' objects, signatures, who is allowed to ask.

#![forbid(unsafe_code)]

mod amount;
mod at_once;
mod audit;
mod backing;
mod booking;
mod books;
mod calls;
mod count;
mod demands;
mod dump;
mod event;
mod facts;
mod fence;
mod give_way;
mod headroom;
mod ledger;
mod moves;
mod permit;
mod pick;
mod place;
mod pod;
mod pods;
mod room;
mod settings;
mod settle;
mod slab;
mod standing;
mod timers;
mod vm;

pub use amount::{Amount, DEFAULT_OVERHEAD, Price};
pub use demands::{Demands, Label, Taint, Toleration};
pub use dump::{Dump, NodeDump, NodeLevel, VmDump};
pub use event::{Action, Actions, Answer, Asked, Event, Notice, ResizeResult, Ticket, Todo, Why};
pub use facts::{
    ContainerNeeds, InitNeeds, MigrationFacts, NodeFacts, Pending, PodFacts, PodKind, PodShape,
    RunnerFacts, Seal, VmFacts,
};
pub use ledger::Ledger;
pub use place::{NotReady, Placement, Shortage};
pub use settings::{Lease, Moves, Scoring, Settings};
