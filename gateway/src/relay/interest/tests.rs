//! What is judged of a publication, by the position that was handed over last.

use carillon_protocol::{Epoch, MessageId, Payload, Tag};

use super::*;

const TRAITS: ChannelTraits = ChannelTraits { history_age: Some(Duration::from_secs(60)) };

fn room() -> ChannelName {
    ChannelName::new("room:one").expect("a channel name")
}

fn position(epoch: u64, offset: u64) -> Position {
    let tag = if offset == 0 { Position::START_TAG } else { Tag::from_random(offset) };
    Position { epoch: Epoch::from_random(epoch), offset, tag }
}

/// Behind a publication with this tag.
fn publication(position: Position, previous: Tag) -> Publication {
    Publication {
        channel: room(),
        position: Some(position),
        previous_tag: Some(previous),
        stamp: 0,
        id: MessageId::new("m").expect("an id"),
        kind: "message".into(),
        timestamp_ms: 0,
        user_id: None,
        meta: None,
        exclude: carillon_protocol::publication::Exclude::default(),
        expires_at_ms: None,
        traceparent: None,
        payload: Payload::of(&1),
    }
}

/// What becomes of a publication where `top` was handed over last.
fn admitted(top: Position, heard: &Publication) -> Admitted {
    let (interest, channel) = (Interest::default(), room());
    assert!(matches!(interest.join(&channel, TRAITS), Wanted::Request(_)));
    let opened = interest.opened(std::slice::from_ref(&channel), &Ok(vec![Some(top)]));
    assert_eq!(opened, (Vec::new(), Vec::new()));
    interest.admit(heard)
}

/// Tags do not tell: every epoch begins with the same one, and a fenced history keeps its tags in its new epoch.
#[test]
fn publication_of_another_epoch_is_never_the_next_one_nor_an_old_one() {
    for offset in [0, 1, 7] {
        let last = position(1, offset);
        let next = |epoch| publication(position(epoch, offset + 1), last.tag);
        assert_eq!(admitted(last, &next(1)), Admitted::Deliver, "behind {offset}");
        assert_eq!(admitted(last, &next(2)), Admitted::Repair, "behind {offset}");
    }
    let old = |epoch| publication(position(epoch, 3), position(epoch, 2).tag);
    assert_eq!(admitted(position(1, 7), &old(1)), Admitted::Drop);
    assert_eq!(admitted(position(1, 7), &old(2)), Admitted::Repair);
    let same = |epoch| publication(position(epoch, 7), position(epoch, 6).tag);
    assert_eq!(admitted(position(1, 7), &same(1)), Admitted::Drop);
    assert_eq!(admitted(position(1, 7), &same(2)), Admitted::Repair);
}

#[test]
fn publication_heard_before_the_older_top_is_known_is_repaired() {
    let (channel, at) = (room(), |offset| position(1, offset));
    let heard = publication(at(2), at(1).tag);
    for (top, repaired) in [(at(1), vec![channel.clone()]), (at(2), Vec::new())] {
        let interest = Interest::default();
        assert!(matches!(interest.join(&channel, TRAITS), Wanted::Request(_)));
        assert_eq!(interest.admit(&heard), Admitted::Drop);
        let opened = interest.opened(std::slice::from_ref(&channel), &Ok(vec![Some(top)]));
        assert_eq!(opened, (Vec::new(), repaired), "the top was {}", top.offset);
    }
}
