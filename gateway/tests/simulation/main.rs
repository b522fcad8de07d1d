//! Several nodes over one embedded broker in one process, with a clock of its own and seeded faults. Thousands
//! of runs; each ends in a verdict by a checker that knows the promises and not the product.
//!
//! `CARILLON_SEED=7 cargo test -p carillon-gateway --test simulation` plays one seed and prints its story when
//! it fails; `CARILLON_RUNS=100000` plays so many others. A seed decides everything that people would call the
//! story: who does what, when, and what breaks. What it does not decide is the order in which hash tables are
//! walked and which of two ready branches tokio takes first; a failure that hangs on those shows again within
//! a few repetitions (`CARILLON_SEED=7 CARILLON_RUNS=50`).

mod checker;
mod client;
mod log;
mod nemesis;
#[path = "../../../broker-client/tests/redis/process.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod process;
mod promotion;
mod records;
#[cfg(test)]
mod regressions;
mod run;
mod scene;
mod session;
mod stage;
mod storage;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Runs of one `make test`.
const RUNS: u64 = 800;
/// Their first seed.
const FIRST: u64 = 1;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn every_seed_keeps_every_promise() {
    let seed = setting("CARILLON_SEED");
    let asked = setting("CARILLON_RUNS");
    let runs = asked.unwrap_or(if seed.is_some() { 1 } else { RUNS });
    // `make test` plays the same ones each time; who asks for a number of them gets others, which are printed.
    let others = || asked.map_or(FIRST, |_| rand::random::<u64>() >> 24);
    let first = seed.unwrap_or_else(others);
    println!("seeds {first} to {}; CARILLON_SEED=N plays one again", first + runs - 1);
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let outcomes = std::thread::scope(|scope| {
        let players: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut failures, mut messages) = (Vec::new(), 0);
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= runs {
                            return (failures, messages);
                        }
                        // One seed that was asked for is played as often as was asked for.
                        let played = if seed.is_some() { first } else { first + index };
                        let outcome = run::run(played);
                        messages += outcome.messages;
                        if !outcome.faults.is_empty() && failures.len() < 50 {
                            failures.push((played, outcome));
                        }
                    }
                })
            })
            .collect();
        players.into_iter().map(|player| player.join().expect("no run panics")).collect::<Vec<_>>()
    });
    let messages: usize = outcomes.iter().map(|(_, messages)| messages).sum();
    println!("{runs} runs, {messages} records in {:.1} s", began.elapsed().as_secs_f64());
    let failures: Vec<_> = outcomes.into_iter().flat_map(|(failures, _)| failures).collect();
    let mut kinds = BTreeMap::new();
    for fault in failures.iter().flat_map(|(_, outcome)| &outcome.faults) {
        *kinds.entry(fault.kind).or_insert(0) += 1;
    }
    for (seed, outcome) in failures.iter().take(20) {
        println!("seed {seed}: {:?}", outcome.faults[0]);
    }
    if let Some((seed, outcome)) = failures.first() {
        println!("the story of seed {seed}:\n{}", outcome.story());
        outcome.faults.iter().for_each(|fault| println!("{fault:?}"));
    }
    assert!(failures.is_empty(), "{} of {runs} runs broke promises: {kinds:?}", failures.len());
}
