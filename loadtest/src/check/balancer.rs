//! Where clients go: what a balancer that watches `/health/ready` would choose.
//!
//! Knows addresses and readiness, not what runs behind them.

use super::http;
use rand::Rng;
use rand::seq::IndexedRandom as _;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// How often each node is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A node that does not answer by then is gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// A node as the balancer sees it.
pub(crate) struct View {
    pub(crate) client: SocketAddr,
    pub(crate) operator: SocketAddr,
    /// Answers that it is ready.
    pub(crate) ready: Cell<bool>,
    /// Answers at all, and is not draining.
    pub(crate) open: Cell<bool>,
    /// Was told to end: whoever connects now should not have.
    pub(crate) ending: Cell<bool>,
}

/// All nodes.
pub(crate) struct Balancer {
    pub(crate) nodes: Vec<View>,
}

impl Balancer {
    /// Over nodes at these addresses (clients', operators').
    pub(crate) fn new(addresses: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) -> Self {
        let view = |(client, operator)| View {
            client,
            operator,
            ready: Cell::new(false),
            open: Cell::new(false),
            ending: Cell::new(false),
        };
        Self { nodes: addresses.into_iter().map(view).collect() }
    }

    /// A ready node; where none is (Redis is away), one that at least answers.
    pub(crate) fn choose(&self, random: &mut impl Rng) -> Option<usize> {
        let of = |test: fn(&View) -> bool| {
            (0..self.nodes.len()).filter(move |at| test(&self.nodes[*at])).collect::<Vec<_>>()
        };
        let ready = of(|view| view.ready.get());
        let open = of(|view| view.open.get());
        ready.choose(random).or_else(|| open.choose(random)).copied()
    }

    /// Whether all nodes are ready.
    pub(crate) fn all_ready(&self) -> bool {
        self.nodes.iter().all(|view| view.ready.get())
    }

    /// Looks at every node for ever.
    pub(crate) async fn watch(self: Rc<Self>) {
        let looks = (0..self.nodes.len()).map(|at| {
            let all = Rc::clone(&self);
            async move {
                loop {
                    all.look(&all.nodes[at]).await;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        });
        futures_util::future::join_all(looks).await;
    }

    async fn look(&self, view: &View) {
        let answer = http::once(view.operator, "GET", "/health/ready", "", "", PATIENCE).await;
        let draining = |body: &[u8]| memchr::memmem::find(body, b"\"draining\":true").is_some();
        let (ready, open) = match &answer {
            Ok(answer) => (answer.status == 200, !draining(&answer.body)),
            Err(_) => (false, false),
        };
        view.ready.set(ready);
        view.open.set(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn ready_nodes_come_first_and_a_draining_one_never() {
        let address: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let balancer = Balancer::new(vec![(address, address); 3]);
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        assert_eq!(balancer.choose(&mut random), None);
        balancer.nodes[0].open.set(true);
        assert_eq!(balancer.choose(&mut random), Some(0));
        balancer.nodes[2].ready.set(true);
        for _ in 0..20 {
            assert_eq!(balancer.choose(&mut random), Some(2));
        }
    }
}
