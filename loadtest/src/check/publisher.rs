//! Who publishes during a check: backends over REST, and clients over their own connections. Each
//! repeats a message with the same id until somebody acknowledges it.

use super::client::{Client, Order, Saying};
use super::http::Http;
use super::lane::Said;
use super::log::{Channel, Number};
use super::shared::Shared;
use crate::mark::Mark;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// When a publish that was not answered is given up and repeated elsewhere.
const ANSWER_BY: Duration = Duration::from_secs(3);

/// All publishers of a run.
pub(crate) struct Publishers {
    shared: Rc<Shared>,
    over: Rc<Cell<bool>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Publishers {
    /// None yet.
    pub(crate) fn new(shared: &Rc<Shared>) -> Self {
        Self { shared: Rc::clone(shared), over: Rc::default(), tasks: Vec::new() }
    }

    /// Backends that together publish `per_second` messages, spread over `channels`.
    pub(crate) fn add_backends(&mut self, count: u32, channels: u32, per_second: f64, seed: u64) {
        for worker in 0..count {
            let own: Vec<Channel> = (0..channels).filter(|at| at % count == worker).collect();
            if own.is_empty() {
                continue;
            }
            let every = Duration::from_secs_f64(f64::from(channels.min(count)) / per_second);
            let (shared, over) = (Rc::clone(&self.shared), Rc::clone(&self.over));
            let random = StdRng::seed_from_u64(seed ^ u64::from(worker));
            let size = shared.size;
            let work = backend(shared, over, own, every, size, random);
            self.tasks.push(tokio::task::spawn_local(work));
        }
    }

    /// A backend that publishes messages of `size` bytes on one channel.
    pub(crate) fn add_hot(&mut self, channel: Channel, every: Duration, size: usize) {
        let (shared, over) = (Rc::clone(&self.shared), Rc::clone(&self.over));
        let random = StdRng::seed_from_u64(u64::from(channel));
        let work = backend(shared, over, vec![channel], every, size, random);
        self.tasks.push(tokio::task::spawn_local(work));
    }

    /// A client that publishes on its own first channel every `every`.
    pub(crate) fn add_talker(&mut self, client: &Rc<Client>, every: Duration) {
        let (shared, over) = (Rc::clone(&self.shared), Rc::clone(&self.over));
        self.tasks.push(tokio::task::spawn_local(talker(shared, over, Rc::clone(client), every)));
    }

    /// No new messages; waits until the last ones are acknowledged, or `patience` is over.
    pub(crate) async fn finish(self, patience: Duration) {
        self.over.set(true);
        let end = Instant::now() + patience;
        for mut task in self.tasks {
            if tokio::time::timeout_at(end, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// The message's payload and id.
fn message(channel: Channel, number: Number, due_ns: u64, size: usize) -> (String, String) {
    let payload = Mark { channel, sequence: number, due_ns }.payload(size);
    (format!("check-{channel}-{number}"), payload)
}

async fn backend(
    shared: Rc<Shared>,
    over: Rc<Cell<bool>>,
    channels: Vec<Channel>,
    every: Duration,
    size: usize,
    mut random: StdRng,
) {
    let mut line = None;
    let mut due = Instant::now() + every.mul_f64(random.random());
    for channel in channels.iter().cycle() {
        sleep_until(due).await;
        if over.get() {
            return;
        }
        publish(&shared, &mut line, *channel, size, &mut random).await;
        // An outage is no backlog: what could not be published then is not due at once now.
        due = (due + every).max(Instant::now());
    }
}

/// Publishes one message through REST, again and again until it is acknowledged.
pub(crate) async fn publish(
    shared: &Rc<Shared>,
    line: &mut Option<Http>,
    channel: Channel,
    size: usize,
    random: &mut StdRng,
) -> Number {
    let (index, number) = shared.publish(channel);
    let (id, payload) = message(channel, number, shared.now_ns(), size);
    let name = Shared::channel(channel);
    let body =
        format!(r#"{{"channel":"{name}","type":"message","id":"{id}","payload":{payload}}}"#);
    let headers = shared.keys.backend();
    loop {
        if line.is_none() {
            let Some(node) = shared.balancer.choose(random) else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let connected = timeout(ANSWER_BY, Http::connect(shared.address(node))).await;
            *line = connected.ok().and_then(Result::ok);
        }
        let Some(http) = line.as_mut() else {
            Shared::count(&shared.refused, "connect");
            sleep(Duration::from_millis(random.random_range(50..250))).await;
            continue;
        };
        shared.sent(index);
        let asked_at = Instant::now();
        let asked =
            timeout(ANSWER_BY, http.ask("POST", "/api/realtime/publish", &headers, &body)).await;
        let reason = match asked {
            Ok(Ok(answer)) if answer.status == 200 => {
                match serde_json::from_slice::<Said>(&answer.body)
                    .ok()
                    .and_then(|said| said.position())
                {
                    Some(position) => {
                        shared.acknowledge(index, position.place());
                        return number;
                    }
                    None => "no position".to_owned(),
                }
            }
            Ok(Ok(answer)) => {
                shared.answer.borrow_mut().record(asked_at.elapsed());
                format!("status {}", answer.status)
            }
            Ok(Err(_)) => "cut".to_owned(),
            Err(_) => {
                shared.answer.borrow_mut().record(asked_at.elapsed());
                "no answer".to_owned()
            }
        };
        Shared::count(&shared.refused, &reason);
        *line = None;
        sleep(Duration::from_millis(random.random_range(50..250))).await;
    }
}

async fn talker(shared: Rc<Shared>, over: Rc<Cell<bool>>, client: Rc<Client>, every: Duration) {
    let Some(channel) = client.lanes.borrow().0.first().map(|lane| lane.index) else { return };
    while !over.get() && !client.gone.get() {
        let (index, number) = shared.publish(channel);
        let (id, payload) = message(channel, number, shared.now_ns(), shared.size);
        let (done, acknowledged) = oneshot::channel();
        let order = Order::Say(Saying { index, channel, id, payload }, done);
        if client.orders.send(order).await.is_err() || acknowledged.await.is_err() {
            return;
        }
        sleep(every).await;
    }
}

/// Publishes `count` messages on one channel in batches; how many.
pub(crate) async fn burst(
    shared: &Rc<Shared>,
    channel: Channel,
    count: u32,
) -> anyhow::Result<u32> {
    let node =
        shared.balancer.choose(&mut rand::rng()).ok_or_else(|| anyhow::anyhow!("no node"))?;
    let mut http = Http::connect(shared.address(node)).await?;
    let (name, headers) = (Shared::channel(channel), shared.keys.backend());
    for from in (0..count).step_by(100) {
        let mut indices = Vec::new();
        let messages: Vec<String> = (from..count.min(from + 100))
            .map(|_| {
                let (index, number) = shared.publish(channel);
                indices.push(index);
                let (id, payload) = message(channel, number, shared.now_ns(), shared.size);
                format!(
                    r#"{{"channel":"{name}","type":"message","id":"{id}","payload":{payload}}}"#
                )
            })
            .collect();
        let body = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
        let answer = http.ask("POST", "/api/realtime/publish/batch", &headers, &body).await?;
        #[derive(serde::Deserialize)]
        struct Results {
            results: Vec<Said>,
        }
        let results: Results = serde_json::from_slice(&answer.body)?;
        for (index, said) in indices.into_iter().zip(results.results) {
            if let Some(position) = said.position() {
                shared.acknowledge(index, position.place());
            }
        }
    }
    Ok(count)
}
