//! Very many operations from numbered seeds. Whatever fails says its seed and its last operations; the same seed fails again.
//!
//! A million, by two threads: `cargo test -p scheduler-ledger --test properties million -- --ignored`

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::run::Run;
use crate::{MOVES, Op, op};

/// Between two calms.
const OPS: u64 = 2000;
/// So many of the last are told.
const TOLD: usize = 12;

/// The operations of one seed; every other seed has leases, and of these and the others every other one has moves.
fn ops(seed: u64) -> Vec<Op> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let op = op(if seed % 4 < 2 { 0 } else { MOVES });
    let mut next = || op.new_tree(&mut runner).expect("nothing is rejected").current();
    (0..OPS).map(|_| next()).collect()
}

/// Says how many were done when something was wrong, and what.
fn go(seed: u64, ops: &[Op]) -> Result<(), (usize, String)> {
    let mut run = match seed % 4 {
        0 => Run::new(),
        1 => Run::leased(),
        2 => Run::moving(),
        _ => Run::moving_and_leased(),
    };
    let mut done = 0;
    let all = catch_unwind(AssertUnwindSafe(|| {
        run.check();
        for op in ops {
            done += 1;
            run.step(op);
        }
        run.settle();
    }));
    all.map_err(|panic| {
        let text = panic.downcast::<String>().map_or_else(|_| "a panic".to_owned(), |text| *text);
        (done, text)
    })
}

/// Seeds by two threads, until all operations are done or one fails.
fn run(operations: u64) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed * OPS >= operations {
                        return;
                    }
                    let ops = ops(seed);
                    if let Err((done, text)) = go(seed, &ops) {
                        next.store(operations, Ordering::Relaxed);
                        let last = &ops[done.saturating_sub(TOLD)..done];
                        panic!("seed {seed}, operation {done}: {text}\nafter {last:#?}");
                    }
                }
            });
        }
    });
}

#[test]
fn many_operations_keep_the_rules() {
    run(40_000);
}

#[test]
#[ignore = "minutes; the same with more seeds"]
fn a_million_operations_keep_the_rules() {
    run(1_000_000);
}
