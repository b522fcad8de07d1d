//! `GET …/poll/missed`: the user's own stream after an offset. `protocol.md` 6, ruling R32.

use std::sync::Arc;

use carillon_broker_client::Start;
use carillon_protocol::codec::write_json;
use carillon_protocol::envelope::Refusal;
use carillon_protocol::{ChannelName, ErrorCode, Profile, Since};

use super::gather::EVENTS_MAX;
use super::question::{check_user, id, wrong};
use crate::auth::Claims;
use crate::dispatch::Dispatch;
use crate::node::Node;
use crate::notifications::{is_expired, is_notification};
use crate::relay::Bridge;
use crate::transport::handshake::Query;

/// Reads a page; the body.
///
/// # Errors
/// `INVALID_MESSAGE`, `FORBIDDEN`, `UNAVAILABLE`.
pub(super) async fn read(
    node: &Arc<Node>,
    claims: &Claims,
    query: &Query,
) -> Result<Vec<u8>, Refusal> {
    check_user(query.get("user_id"), claims)?;
    let profile = match query.get("profile") {
        None => Profile::Social,
        Some(name) => Profile::parse(name)
            .ok_or_else(|| wrong("profile", "is one of social, uno, dnr, excore"))?,
    };
    let sequence = query.get("last_sequence").map(str::trim).filter(|text| !text.is_empty());
    let sequence = sequence.ok_or_else(|| wrong("last_sequence", "is required"))?;
    let sequence = id(sequence, "last_sequence")?;
    let stream = ChannelName::user_stream(claims.user.as_str());
    let stream =
        stream.ok_or_else(|| Refusal::new(ErrorCode::NotFound, "This user has no stream"))?;
    let retention = node.policy.load().find(&stream).and_then(|found| found.namespace.retention);
    let Some(retention) = retention else {
        return Ok(br#"{"messages":[],"epoch":null,"recovered":false,"has_more":false}"#.to_vec());
    };
    let mut out = b"{\"messages\":[".to_vec();
    let (mut at, mut written, mut recovered) = (sequence, 0, true);
    let mut epoch = query.get("epoch").map(|epoch| Since::new(epoch, sequence, None).epoch);
    let has_more = loop {
        let page =
            node.relay.history(&stream, Start::After(at), EVENTS_MAX as u32, retention.age).await;
        let page = page.map_err(|error| node.broker_refusal(&error))?;
        let known = *epoch.get_or_insert(Some(page.top.epoch));
        let since = Since { epoch: known, offset: at, tag: None, foreign_tag: false };
        recovered &= Bridge::judge(&since, &page) == Bridge::Whole;
        epoch = Some(Some(page.top.epoch));
        for publication in &page.publications {
            if written == EVENTS_MAX {
                break;
            }
            at = publication.position.map_or(at, |position| position.offset);
            if publication.exclude.users.contains(&claims.user) || is_expired(publication) {
                continue;
            }
            if written > 0 {
                out.push(b',');
            }
            let dispatch = Arc::new(Dispatch::new(publication.clone()));
            if is_notification(publication) {
                node.courier.delivered(&dispatch);
            }
            write_json(&dispatch.publication.envelope(dispatch.label()), profile, &mut out);
            written += 1;
        }
        let more = at < page.top.offset && !page.publications.is_empty();
        if !more || written == EVENTS_MAX {
            break more;
        }
    };
    let epoch = epoch.flatten().map(|epoch| epoch.to_string());
    let rest = serde_json::json!({"epoch": epoch, "recovered": recovered, "has_more": has_more})
        .to_string();
    out.extend_from_slice(b"],");
    out.extend_from_slice(&rest.as_bytes()[1..]);
    Ok(out)
}
