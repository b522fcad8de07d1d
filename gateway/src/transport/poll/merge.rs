//! What ears heard of channels without history, made one list: each message once, in the order in which it was published.
//! That order is the stamp's, which the publishing step gives; a poll's cursor holds the stamp up to which a channel was
//! answered, and what is not later than that is dropped. Which ear heard it, and when, then does not matter.
//!
//! It must not know: connections, answers, pages.

use std::borrow::Cow;
use std::collections::HashSet;

use carillon_protocol::{ChannelName, Cursor, Epoch, Position};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A stamp so much earlier than the last one is no late copy, which no ear holds for so long: the server's clock was set
/// back, or another server with a slow one took over.
const SET_BACK_US: u64 = 120_000_000;

/// What one ear heard, oldest first.
pub(crate) type Stretch = Vec<Heard>;

/// One message without a position.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// See [`carillon_protocol::Publication::stamp`]; 0 for what is no channel's.
    stamp: u64,
    /// The channel as the client knows it.
    pub(super) channel: Option<ChannelName>,
    document: Box<RawValue>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    channel: Option<Cow<'a, str>>,
}

impl Heard {
    /// Without a stamp: it stands where it is put.
    pub(super) fn of(document: Box<RawValue>) -> Self {
        Self::stamped(0, document)
    }

    /// Of a channel where the document names one.
    pub(super) fn stamped(stamp: u64, document: Box<RawValue>) -> Self {
        let head = serde_json::from_str::<Head<'_>>(document.get()).ok();
        let channel = head.and_then(|head| ChannelName::new(&head.channel?).ok());
        Self { stamp, channel, document }
    }

    /// Reads documents, each behind its stamp if it has one, up to what cannot be read.
    pub(crate) fn read(text: &[u8]) -> Stretch {
        let values = serde_json::Deserializer::from_slice(text).into_iter::<Box<RawValue>>();
        let (mut heard, mut stamp) = (Vec::new(), 0);
        for value in values.map_while(Result::ok) {
            match value.get().parse() {
                Ok(number) => stamp = number,
                Err(_) => heard.push(Self::stamped(std::mem::take(&mut stamp), value)),
            }
        }
        heard
    }

    /// As [`Heard::read`] reads it.
    pub(crate) fn to_text(&self) -> String {
        format!("{}\n{}", self.stamp, self.document.get())
    }

    /// What the client is answered.
    pub(super) fn document(&self) -> &RawValue {
        &self.document
    }

    /// Channel and stamp, where it has its place by them.
    pub(super) fn place(&self) -> Option<(&ChannelName, u64)> {
        Some((self.channel.as_ref()?, self.stamp)).filter(|(_, stamp)| *stamp > 0)
    }

    /// Whether it comes behind what was answered up to a cursor.
    pub(super) fn follows(&self, cursor: &Cursor) -> bool {
        let Some((channel, stamp)) = self.place() else { return true };
        let last = cursor.get(channel.as_str()).filter(|last| last.epoch == Epoch::NONE);
        last.is_none_or(|last| stamp > last.offset || stamp + SET_BACK_US < last.offset)
    }
}

/// Where a channel without history stands in a cursor.
pub(super) const fn passed(stamp: u64) -> Position {
    Position { epoch: Epoch::NONE, offset: stamp, tag: Position::START_TAG }
}

/// See the module. What has no stamp stays behind what stood in front of it.
pub(super) fn merged(mut stretches: Vec<Stretch>) -> Stretch {
    stretches.retain(|stretch| !stretch.is_empty());
    if stretches.len() < 2 {
        // One ear hears in order.
        return stretches.pop().unwrap_or_default();
    }
    let mut all = Vec::with_capacity(stretches.iter().map(Vec::len).sum());
    for stretch in stretches {
        let mut stood = 0;
        for heard in stretch {
            stood = if heard.stamp > 0 { heard.stamp } else { stood };
            all.push((stood, heard));
        }
    }
    all.sort_by_key(|(stood, _)| *stood);
    let mut seen = HashSet::new();
    all.retain(|(_, heard)| seen.insert((heard.stamp, heard.document.get().to_owned())));
    all.into_iter().map(|(_, heard)| heard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(stamp: u64) -> Heard {
        let text = format!(r#"{{"id":"{stamp}","channel":"fleeting:1"}}"#);
        Heard::stamped(stamp, RawValue::from_string(text).expect("JSON"))
    }

    fn stretch(stamps: &[u64]) -> Stretch {
        stamps.iter().copied().map(heard).collect()
    }

    fn order(stretches: &[&[u64]]) -> Vec<u64> {
        let all = merged(stretches.iter().map(|stamps| stretch(stamps)).collect());
        all.iter().map(|heard| heard.stamp).collect()
    }

    #[test]
    fn each_message_is_there_once_and_in_order_whatever_each_ear_missed() {
        assert!(order(&[]).is_empty());
        assert_eq!(order(&[&[1, 2, 3], &[2, 3], &[3, 4]]), [1, 2, 3, 4]);
        assert_eq!(order(&[&[3, 4], &[1, 2, 3]]), [1, 2, 3, 4]);
        assert_eq!(order(&[&[1, 3], &[2, 3, 4]]), [1, 2, 3, 4]);
        assert_eq!(order(&[&[2, 4], &[], &[1, 3, 5]]), [1, 2, 3, 4, 5], "nothing in common");
    }

    #[test]
    fn what_is_no_channels_stays_in_its_place_and_comes_once() {
        let word = |text: &str| Heard::of(RawValue::from_string(text.to_owned()).expect("JSON"));
        let one = vec![word("\"first\""), heard(2), word("\"told\"")];
        let other = vec![heard(1), heard(2), word("\"told\""), heard(3)];
        let all = merged(vec![one, other]);
        let ids: Vec<(u64, &str)> =
            all.iter().map(|heard| (heard.stamp, heard.document.get())).collect();
        let place = |text: &str| ids.iter().position(|(_, document)| *document == text);
        assert_eq!((place("\"first\""), place("\"told\"")), (Some(0), Some(3)), "{ids:?}");
        assert_eq!(ids.len(), 5, "{ids:?}");
    }

    #[test]
    fn only_what_is_later_than_the_cursor_follows_it() {
        let mut cursor = Cursor::default();
        assert!(heard(7).follows(&cursor));
        let channel = ChannelName::new("fleeting:1").expect("a channel");
        cursor.set(&channel, passed(SET_BACK_US + 7));
        assert!(!heard(SET_BACK_US + 7).follows(&cursor), "again");
        assert!(!heard(8).follows(&cursor), "late");
        assert!(heard(SET_BACK_US + 8).follows(&cursor));
        assert!(heard(6).follows(&cursor), "the clock was set back");
        let kept = Position { epoch: Epoch::from_random(1), ..passed(u64::MAX / 2) };
        cursor.set(&channel, kept);
        assert!(heard(1).follows(&cursor), "the channel had a history then");
    }

    #[test]
    fn a_stretch_reads_back_as_written_with_stamps_and_without() {
        let text = b"{\"a\":1}17\n{\"channel\":\"c\",\"n\":12345678901234567890}{\"b\":2}";
        let read = Heard::read(text);
        let stamps: Vec<u64> = read.iter().map(|heard| heard.stamp).collect();
        assert_eq!(stamps, [0, 17, 0]);
        for heard in &read {
            let again = Heard::read(heard.to_text().as_bytes());
            assert_eq!(again[0].stamp, heard.stamp);
            assert_eq!(again[0].document.get(), heard.document.get());
        }
        assert_eq!(
            read[1].place().map(|(channel, stamp)| (channel.as_str(), stamp)),
            Some(("c", 17))
        );
    }
}
