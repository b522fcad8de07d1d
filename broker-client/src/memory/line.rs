//! Whether a node's commands reach the cluster: not during an outage, nor while the node is cut off.
//! It knows no command.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{BrokerError, Health, NodeId};

/// One node's line for commands.
#[derive(Debug)]
pub(super) struct Line {
    node: NodeId,
    health: watch::Sender<Health>,
    generation: AtomicU64,
    cut: Mutex<bool>,
}

/// All lines, and whether there is anything at their other end.
#[derive(Default)]
pub(super) struct Lines {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    outage: bool,
    lines: Vec<Weak<Line>>,
}

impl Lines {
    pub(super) fn join(&self, node: &NodeId) -> Arc<Line> {
        let mut state = self.state.lock();
        let health = watch::Sender::new(Health::Up);
        let (generation, cut) = (AtomicU64::new(0), Mutex::new(false));
        let line = Arc::new(Line { node: node.clone(), health, generation, cut });
        line.tell(state.outage);
        state.lines.retain(|line| line.strong_count() > 0);
        state.lines.push(Arc::downgrade(&line));
        line
    }

    pub(super) fn set_outage(&self, outage: bool) {
        let mut state = self.state.lock();
        state.outage = outage;
        state.lines.iter().filter_map(Weak::upgrade).for_each(|line| line.tell(outage));
    }

    pub(super) fn set_cut(&self, node: &NodeId, cut: bool) {
        let state = self.state.lock();
        for line in state.lines.iter().filter_map(Weak::upgrade).filter(|line| line.node == *node) {
            *line.cut.lock() = cut;
            line.tell(state.outage);
        }
    }
}

impl Line {
    fn tell(&self, outage: bool) {
        let health = match (outage, *self.cut.lock()) {
            (true, _) => Health::Down("simulated outage".to_owned()),
            (false, true) => Health::Down("simulated cut".to_owned()),
            (false, false) => Health::Up,
        };
        self.health.send_if_modified(|present| {
            let modified = *present != health;
            if modified && health == Health::Up {
                self.generation.fetch_add(1, Ordering::Relaxed);
            }
            *present = health;
            modified
        });
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    pub(super) fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(super) fn check(&self) -> Result<(), BrokerError> {
        match &*self.health.borrow() {
            Health::Up => Ok(()),
            Health::Starting => Err(BrokerError::unavailable("starting")),
            Health::Down(reason) => Err(BrokerError::unavailable(reason)),
        }
    }
}
