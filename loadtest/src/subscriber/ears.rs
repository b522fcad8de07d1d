//! What one client heard, stream by stream. A stream is what one speaker says to one channel: its order is known.

use crate::tally::Order;

/// The streams of one client; few, so they are searched one by one.
#[derive(Default)]
pub(crate) struct Ears(Box<[(u32, Order)]>);

impl Ears {
    /// Nothing heard yet of `streams`.
    pub(crate) fn new(streams: impl IntoIterator<Item = u32>) -> Self {
        Self(streams.into_iter().map(|stream| (stream, Order::default())).collect())
    }

    /// Notes a message. One that is not for this client counts as heard twice.
    pub(super) fn hear(&mut self, stream: u32, sequence: u32) {
        match self.0.iter_mut().find(|(own, _)| *own == stream) {
            Some((_, order)) => order.hear(sequence),
            None => {
                if let Some((_, order)) = self.0.first_mut() {
                    order.duplicated += 1;
                }
            }
        }
    }

    /// Messages never heard, where the last sequence of each stream is `sequences`.
    pub(crate) fn lost(&self, sequences: &[u32]) -> u64 {
        let last = |stream: u32| sequences.get(stream as usize).copied().unwrap_or(0);
        self.0.iter().map(|(stream, order)| order.lost(last(*stream))).sum()
    }

    /// Messages heard more than once, and after a later one.
    pub(crate) fn doubled_and_late(&self) -> (u64, u64) {
        let sum = |(doubled, late): (u64, u64), (_, order): &(u32, Order)| {
            (doubled + order.duplicated, late + order.reordered)
        };
        self.0.iter().fold((0, 0), sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_judged_apart_and_a_strangers_message_is_a_flaw() {
        let mut ears = Ears::new([3, 7]);
        for (stream, sequence) in [(3, 1), (7, 1), (3, 2), (7, 3), (5, 1)] {
            ears.hear(stream, sequence);
        }
        let mut sequences = [0; 8];
        (sequences[3], sequences[7]) = (2, 3);
        assert_eq!(ears.lost(&sequences), 1);
        assert_eq!(ears.doubled_and_late(), (1, 0));
    }
}
