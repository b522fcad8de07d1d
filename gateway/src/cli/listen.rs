//! `carillon listen`: a terminal client. The socket and its reconnects are here; what a message
//! means is `session`'s, how it looks is `line`'s.

mod line;
mod session;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use http::Uri;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use super::backoff::Backoff;
use crate::outbound::{Io, dial, tls_config};
pub(super) use line::Look;
pub(super) use session::{Heard, Session};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server pings every 30 s; three of them missed and the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(90);

#[derive(Clone, Debug, Args)]
pub(super) struct ListenArgs {
    /// The gateway.
    #[arg(long, default_value = "ws://127.0.0.1:8082/ws", env = "CARILLON_WS_URL")]
    url: String,
    /// The token; without one, only where anonymous clients are admitted.
    #[arg(long, env = "CARILLON_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A channel (repeatable). One's own notifications are always heard.
    #[arg(long = "channel", value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Print each message as one line of JSON.
    #[arg(long)]
    json: bool,
    /// End after so many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Why a connection ended.
enum Ended {
    /// Everything asked for was printed, or nobody reads any more.
    Done,
    /// It may work again, not before this time.
    Again { reason: String, after: Duration, was_good: bool },
}

pub(super) async fn run(args: ListenArgs) -> anyhow::Result<ExitCode> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let look = if args.json { Look::Json } else { Look::Text { colour } };
    let mut session = Session::new(&args.channels);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let ended = match connect(&args).await? {
            Ok(socket) => hear(socket, &mut session, look, &mut left).await?,
            Err(reason) => Ended::Again { reason, after: Duration::ZERO, was_good: false },
        };
        let Ended::Again { reason, after, was_good } = ended else { break };
        if was_good {
            backoff.reset();
        }
        let wait = after + backoff.next();
        eprintln!("-- {reason}; again in {:.1} s", wait.as_secs_f64());
        tokio::time::sleep(wait).await;
    }
    Ok(ExitCode::SUCCESS)
}

type Socket = WebSocketStream<Box<dyn Io>>;

/// The address of a node is good enough: `http://host` means `ws://host/ws`.
fn websocket_url(url: &str) -> String {
    let url = match url.split_once("://") {
        Some(("http", rest)) => format!("ws://{rest}"),
        Some(("https", rest)) => format!("wss://{rest}"),
        _ => url.to_owned(),
    };
    match url.split_once("://") {
        Some((scheme, rest)) if !rest.trim_end_matches('/').contains(['/', '?']) => {
            format!("{scheme}://{}/ws", rest.trim_end_matches('/'))
        }
        _ => url,
    }
}

/// A socket; or, inside, why it may work later; or, outside, why it never will.
async fn connect(args: &ListenArgs) -> anyhow::Result<Result<Socket, String>> {
    let uri: Uri = websocket_url(&args.url).parse().context("--url is no URL")?;
    anyhow::ensure!(
        matches!(uri.scheme_str(), Some("ws" | "wss")),
        "--url must begin with ws://, wss://, http:// or https://"
    );
    let mut request = uri.clone().into_client_request().context("--url cannot be used")?;
    if let Some(token) = &args.token {
        let value =
            format!("Bearer {token}").parse().context("--token cannot be sent in a header")?;
        request.headers_mut().insert("authorization", value);
    }
    let attempt = async {
        let io = dial(&uri, tls_config()).await.map_err(tungstenite::Error::Io)?;
        tokio_tungstenite::client_async(request, io).await
    };
    match timeout(CONNECT_TIMEOUT, attempt).await {
        Err(_) => Ok(Err("no connection in time".to_owned())),
        Ok(Ok((socket, _))) => Ok(Ok(socket)),
        Ok(Err(tungstenite::Error::Http(answer))) => {
            let status = answer.status();
            let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            // 429 and 5xx pass; a refused token or a wrong path stays refused.
            anyhow::ensure!(status.is_server_error() || status.as_u16() == 429, "{status}: {body}");
            Ok(Err(status.to_string()))
        }
        Ok(Err(error)) => Ok(Err(error.to_string())),
    }
}

async fn hear(
    mut socket: Socket,
    session: &mut Session,
    look: Look,
    left: &mut u64,
) -> anyhow::Result<Ended> {
    let again = |reason: String, after, was_good| Ended::Again { reason, after, was_good };
    for request in session.requests() {
        if let Err(error) = socket.send(Message::text(request)).await {
            return Ok(again(error.to_string(), Duration::ZERO, false));
        }
    }
    let (mut was_good, mut after) = (false, Duration::ZERO);
    loop {
        let frame = match timeout(SILENCE_MAX, socket.next()).await {
            Err(_) => return Ok(again("the server is silent".to_owned(), after, was_good)),
            Ok(None) => return Ok(again("the connection ended".to_owned(), after, was_good)),
            Ok(Some(Err(error))) => return Ok(again(error.to_string(), after, was_good)),
            Ok(Some(Ok(frame))) => frame,
        };
        let text = match frame {
            Message::Text(text) => text,
            Message::Close(close) => {
                let reason = close.map_or_else(
                    || "closed".to_owned(),
                    |close| format!("closed: {} {}", u16::from(close.code), close.reason),
                );
                return Ok(again(reason, after, was_good));
            }
            _ => continue,
        };
        for heard in session.hear(text.as_str()) {
            match heard {
                Heard::Message(message) => {
                    if writeln!(std::io::stdout(), "{}", look.line(&message)).is_err() {
                        return Ok(Ended::Done);
                    }
                    *left -= 1;
                    if *left == 0 {
                        return Ok(Ended::Done);
                    }
                }
                Heard::Note(note) => eprintln!("-- {note}"),
                Heard::Connected => was_good = true,
                Heard::Disconnect { reconnect: false, reason } => {
                    anyhow::bail!("disconnected: {reason}")
                }
                Heard::Disconnect { reconnect: true, reason } => {
                    eprintln!("-- the server says: {reason}");
                }
                Heard::RetryAfter(wait) => after = wait,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::websocket_url;

    #[test]
    fn the_address_of_a_node_is_its_default_endpoint() {
        assert_eq!(websocket_url("http://127.0.0.1:8082"), "ws://127.0.0.1:8082/ws");
        assert_eq!(websocket_url("https://example.org/"), "wss://example.org/ws");
        assert_eq!(websocket_url("ws://127.0.0.1:8082/ws/chat"), "ws://127.0.0.1:8082/ws/chat");
        assert_eq!(
            websocket_url("ws://127.0.0.1:8082/?profile=dnr"),
            "ws://127.0.0.1:8082/?profile=dnr"
        );
    }
}
