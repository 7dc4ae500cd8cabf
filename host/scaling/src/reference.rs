//! The policy `reference`: how large the reference would make a VM, given the same metrics.
//!
//! ```text
//!   load average ------> CPU goal ------+
//!   memory in use -----> memory goal ---+--> largest, whole compute units --> desired size
//!   cache windows -----> cache goal ----+          ^                              ^
//!                    (and memory with cache)       | asked for lately,            | bounds, present use,
//!                                                  | denied lately                | denied lately
//! ```
//!
//! The machine around it ([`crate::Scaler`]) is the same for both policies: requests to scheduler, VM object and guest, one
//! of each in flight. Exact: the same inputs give the same goal, to the unit; up at once, down by one unit for each
//! agreement of the guest, no calm spell, no hysteresis. Who asks for more is the guest's own policy, which sees a shortage
//! coming; the reference's detector is a control (`guest_policy::reference`). The cache's windows ([`crate::Event::Cache`])
//! are expected only where `enableLFCMetrics` says so; our guests do not send them yet, so that such a VM never shrinks below
//! what it has.
//!
//! What the reference is right about, and a test that shows it (in `tests/reference.rs`):
//!
//! | rule | test |
//! |---|---|
//! | M2: the guest is asked before a decrease and told after an increase | `the_guest_is_asked_before_a_decrease_and_told_after_an_increase` |
//! | M3: no decrease without a live guest, nor below use without all expected metrics | `without_a_live_guest_nothing_becomes_smaller`, `a_guest_that_is_connected_and_silent_is_not_asked`, `without_all_metrics_nothing_becomes_smaller` |
//! | M4: a denial holds even above the maximum | `a_denial_holds_above_the_maximum` |
//! | M7: permits need not be whole units; CPU and memory are apart | `permits_need_not_be_whole_units_and_cpu_and_memory_are_apart` |
//!
//! What differs on purpose; tests without a file are in `tests/reference.rs`:
//!
//! | | the reference | here | test |
//! |---|---|---|---|
//! | X36 | the time limit of permit requests is ignored | it holds | agent: `scheduler::tests::a_scheduler_that_does_not_answer_is_waited_for_as_configured` |
//! | X37 | a limit of one unit for notices that has no effect | none: one notice says what is plugged | `the_guest_is_asked_before_a_decrease_and_told_after_an_increase` |
//! | X38 | windows below 2, a wait below the window, a missing choice of the window crash the VM's tasks | refused, in the file and in the annotation | `config::tests::what_would_crash_or_divide_by_zero_is_refused`; agent: `scaling::tests::annotations_are_checked_over_the_defaults` |
//! | X39 | `rereportThreshold` is unused | checked; no scaling events are sent, clients for them are refused | agent: `file::tests::every_problem_names_its_field` |
//! | X40 | a refresh interval of zero crashes every VM's tasks | refused | the same |
//! | X41 | the state dump wants a GET with a body, and crashes for a VM that is just starting | no listener; subcommands ask over a socket, an unknown VM is said to be unknown | agent: `admin::tests::questions_reach_the_task_and_unknown_vms_are_said_to_be_unknown` |
//! | X42 | a goal beyond 16 bits wraps to a tiny one | saturates | `goal::tests::absurd_metrics_saturate`, `desired::tests::absurd_sizes_saturate` |
//! | X43 | use is what was patched | the guest hears, and the scheduler gets back, what the hypervisor shows | `the_guest_is_asked_before_a_decrease_and_told_after_an_increase`, steps: `the_scheduler_hears_of_what_is_in_flight` |
//! | X44 | grace starts anew with every event of the VM; failures are timed before their request | grace counts from the start of the VM's task, failures from their answer | agent: `health::tests::silence_and_failures_make_a_vm_stuck_until_they_are_over` |
//! | X44 | inbound messages that fail are not counted | they end the connection, and silence makes the VM stuck | protocol: `link::malformed_frames_end_the_connection`; agent: the same |
//! | X46 | after a migration the old node's agent adopts the new pod | no migration yet; an agent knows the pods of its own node alone, and a VM without one of them has no task | by construction: the agent's watch of pods names its node |
//! | X48 | negative CPU bounds pass | refused | agent: `view::tests::wrong_annotations_are_named` |
//! | X64 | the guest is told of more while a shrink is in flight, or connects during one | one direction at a time | `one_direction_at_a_time` |
//! | X65 | a shrink starts while a notice is in flight | the notice ends first | `no_shrink_begins_while_a_notice_is_in_flight` |
//! | X66 | the scheduler hears less than a growth in flight will use | it hears of what is in flight | steps: `the_scheduler_hears_of_what_is_in_flight` |
//! | X67 | a target of zero makes a goal infinite, which ends as the smallest size | refused; a goal saturates upwards | `config::tests::what_would_crash_or_divide_by_zero_is_refused`, `goal::tests::absurd_metrics_saturate` |
//! | | a share of 0 or below for the cache, and zones below 0, are taken: goals without end, or below 0 | refused | `config::tests::what_would_crash_or_divide_by_zero_is_refused` |
//! | X68 | cache windows drive the goal after their metrics were switched off | dropped at once | `goal::tests::windows_count_only_while_they_are_enabled`, `the_working_set_of_the_cache_counts_until_its_metrics_are_off` |
//! | | what is asked for counts from what the monitor approved | from the least of that, the spec and what is plugged | steps: `what_the_guest_asks_for_counts_from_what_it_agreed_to` |
//! | | growth that the monitor has not heard of is undone in one patch, to the goal | the same, down to what is plugged; the rest in steps | steps: `a_growth_that_is_not_plugged_is_undone_at_once_and_without_a_question` |
//! | | metrics outlive the guest's connection: growth goes on without it | they end with it; the VM keeps its size, and asks for no more until it hears of load again | `levels_of_an_earlier_connection_do_not_count` |
//! | | the first permit request states the spec, and comes after the first change of state | it asks for the goal, at once | `up_at_once_to_the_goal` |
//! | | what a failed return would have given back is used without asking | it is asked for again, 3 s later: the scheduler may have taken it | `timers_are_the_references` |
//! | | a statement that failed is repeated at the next one's time | after 3 s, as every request that failed | `timers_are_the_references` |
//! | | a failed patch is repeated after 5 s | one that met another version of the object after 100 ms; five of these in a row count as a failure | properties: `lost_races_are_repeated_at_once_but_not_without_end` |
//! | | what the guest agreed to counts until the next notice; a shrink that failed is written again | it counts for 2 s; then the guest is asked again | `the_guest_is_asked_before_a_decrease_and_told_after_an_increase` |
//! | | a guest that connects has what there is | it is told what is plugged | `the_guest_is_asked_before_a_decrease_and_told_after_an_increase` |
//! | | a spec that others change is left alone | it follows the goal, and never asks for what neither permit nor hypervisor has | properties: `invariants_hold_and_faults_that_stop_leave_no_trace` |
//! | | the next step down begins before the hypervisor has made the last one | it waits for it | `down_one_unit_for_each_agreement_and_without_a_calm_spell`, steps: `a_step_down_that_comes_in_pieces_is_one_step` |
//! | | load, memory and cache are asked for over HTTP every 5 and 15 s | the guest says them about once a second | |
//! | | a denial makes a VM grow, and be denied again, where CPU and memory are not the same number of units | it holds what there is | `a_veto_never_grows_a_vm` |
//! | | a denial is forgotten when the connection ends | it binds for its 5 s, as every veto | `a_denial_outlives_its_connection` |

mod cache;
mod config;
mod desired;
mod goal;
mod state;

pub use cache::CacheWindows;
pub use config::{ConfigProblem, ReferenceConfig};
pub use desired::{ComputeUnit, Denied, Desired, Requested};
pub use goal::{CacheMetrics, Components, Goal, SystemMetrics, WorkingSet, goal};
pub(crate) use state::State;
