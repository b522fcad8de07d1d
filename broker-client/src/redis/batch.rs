//! Many commands at once: pipelined for each server, answered in the order asked. Knows no meaning of any command.
//!
//! A pipeline is no transaction: while a slot of a cluster is on its way, a server may send one command elsewhere and
//! take the next; and one that was told to forget its scripts may refuse one and know the next, since somebody else taught it
//! meanwhile. Where order matters, what belongs to one slot, or else to one server, therefore happens as a whole (MULTI) or
//! not at all, and is then done one by one in order.

use std::sync::Arc;

use foldhash::HashMap;
use futures_util::future::join_all;
use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::layout::{Again, Call, Layout, settled};
use super::link::Link;
use crate::BrokerError;

/// Commands in one pipeline, but for a step that is longer.
const PIPELINE_MAX: usize = 1_000;
/// Each step is a pipeline of its own: the next one must know what became of it.
const IN_TURN: usize = 1;

/// Places in the list of calls: of one call, or of several that happen together or not at all.
type Step = Vec<usize>;
type Answers = Vec<(usize, Result<Value, BrokerError>)>;

impl Layout {
    /// Runs many commands; answers in the order of the calls. Calls to one place keep their order unless the place
    /// moves meanwhile.
    pub(super) async fn run_all(&self, calls: Vec<Call>) -> Vec<Result<Value, BrokerError>> {
        let (mut shares, mut homeless) = (Shares::default(), Vec::new());
        for (index, call) in calls.iter().enumerate() {
            match &call.place.link {
                Some(link) => shares.of(link).push(vec![index]),
                None => homeless.push(index),
            }
        }
        self.run_shares(&calls, shares, homeless, PIPELINE_MAX).await
    }

    /// As [`Layout::run_all`]; calls to one place happen in their order also while it moves. One that fails does not
    /// keep back those behind it. `together` calls happen as one where they need not be divided by slots: a server does
    /// nothing else meanwhile.
    pub(super) async fn run_in_order(
        &self,
        calls: Vec<Call>,
        together: usize,
    ) -> Vec<Result<Value, BrokerError>> {
        let (mut shares, mut homeless) = (Shares::default(), Vec::new());
        let Self::Cluster(cluster) = self else {
            for (index, call) in calls.iter().enumerate() {
                let Some(link) = &call.place.link else {
                    homeless.push(index);
                    continue;
                };
                let steps = shares.of(link);
                match steps.last_mut().filter(|step| step.len() < together) {
                    Some(step) => step.push(index),
                    None => steps.push(vec![index]),
                }
            }
            return self.run_shares(&calls, shares, homeless, IN_TURN).await;
        };
        let mut steps: Vec<(u16, Step)> = Vec::new();
        let mut of_slot: HashMap<u16, usize> = HashMap::default();
        for (index, call) in calls.iter().enumerate() {
            let slot = call.place.slot;
            let step = *of_slot.entry(slot).or_insert_with(|| {
                steps.push((slot, Vec::new()));
                steps.len() - 1
            });
            steps[step].1.push(index);
        }
        for (slot, step) in steps {
            // One server for all of a slot, whatever the map said when each of them was made.
            match cluster.link_of(slot) {
                Some(link) => shares.of(&link).push(step),
                None => homeless.extend(step),
            }
        }
        self.run_shares(&calls, shares, homeless, PIPELINE_MAX).await
    }

    async fn run_shares(
        &self,
        calls: &[Call],
        shares: Shares,
        homeless: Vec<usize>,
        pipeline_max: usize,
    ) -> Vec<Result<Value, BrokerError>> {
        let mut results: Vec<Result<Value, BrokerError>> =
            calls.iter().map(|_| Err(BrokerError::unavailable("an answer is missing"))).collect();
        let sent =
            shares.0.iter().map(|(link, steps)| self.run_share(calls, link, steps, pipeline_max));
        let (sent, alone) = tokio::join!(join_all(sent), self.one_by_one(calls, &homeless));
        for (index, answer) in sent.into_iter().flatten().chain(alone) {
            results[index] = answer;
        }
        results
    }

    /// What is one server's.
    async fn run_share(
        &self,
        calls: &[Call],
        link: &Arc<Link>,
        steps: &[Step],
        pipeline_max: usize,
    ) -> Answers {
        let mut answers = Vec::with_capacity(steps.len());
        let mut rest = steps;
        while !rest.is_empty() {
            let mut count = 0;
            let fits = |step: &&Step| {
                let first = count == 0;
                count += length(step);
                first || count <= pipeline_max
            };
            let (some, later) = rest.split_at(rest.iter().take_while(fits).count());
            rest = later;
            self.run_pipeline(calls, link, some, &mut answers).await;
        }
        answers
    }

    async fn run_pipeline(
        &self,
        calls: &[Call],
        link: &Arc<Link>,
        steps: &[Step],
        answers: &mut Answers,
    ) {
        let count = steps.iter().map(length).sum();
        let mut pipeline = Pipeline::with_capacity(count);
        for step in steps {
            let together = step.len() > 1;
            if together {
                pipeline.cmd("MULTI");
            }
            for index in step {
                pipeline.add_command(calls[*index].command.clone());
            }
            if together {
                pipeline.cmd("EXEC");
            }
        }
        let mut values = match link.send_all(&pipeline, count).await {
            Ok(values) => values.into_iter(),
            Err(error) => {
                let all = steps.iter().flatten();
                return answers.extend(all.map(|index| (*index, Err(error.clone()))));
            }
        };
        let mut again = Vec::new();
        for step in steps {
            let last = values.by_ref().take(length(step)).last();
            let done = match last {
                Some(Value::Array(done)) if step.len() > 1 && done.len() == step.len() => done,
                Some(value) if step.len() == 1 => vec![value],
                // Redirected, or refused for one of them: none of it happened.
                _ => {
                    again.extend(step);
                    continue;
                }
            };
            for (index, value) in step.iter().zip(done) {
                match Ok(value) {
                    value if Again::of(&value).is_some() => again.push(*index),
                    value => answers.push((*index, value.and_then(settled))),
                }
            }
        }
        // Before the next pipeline, which may hold what must come behind.
        answers.extend(self.one_by_one(calls, &again).await);
    }

    /// One after the other, within one time-out for all.
    async fn one_by_one(&self, calls: &[Call], indices: &[usize]) -> Answers {
        let deadline = Instant::now() + self.patience();
        let mut answers = Vec::with_capacity(indices.len());
        for index in indices {
            let Call { place, command } = &calls[*index];
            answers.push((*index, self.run_until(deadline, place, command).await));
        }
        answers
    }
}

/// Commands that a step takes.
fn length(step: &Step) -> usize {
    if step.len() > 1 { step.len() + 2 } else { step.len() }
}

/// The steps of each server.
#[derive(Default)]
struct Shares(Vec<(Arc<Link>, Vec<Step>)>);

impl Shares {
    fn of(&mut self, link: &Arc<Link>) -> &mut Vec<Step> {
        let known = self.0.iter().position(|(known, _)| Arc::ptr_eq(known, link));
        let at = known.unwrap_or_else(|| {
            self.0.push((Arc::clone(link), Vec::new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }
}
