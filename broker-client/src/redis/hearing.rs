//! The hearing link: a pub/sub connection of our own, so that what it hears is bounded by the socket,
//! its interest is ours to keep, and its silence is noticed.
//!
//! While it is down, wishes are kept and answered `Unavailable`; when it is back, all wishes are
//! subscribed again before [`Event::Restored`] says so. A canary published through the command link must
//! come back here; if it does not for five seconds, the connection is deaf and replaced.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use carillon_protocol::{ChannelName, Epoch, Position, Publication, Tag};
use foldhash::HashSet;
use redis::{ConnectionAddr, ConnectionInfo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address;
use super::commands::Commands;
use super::names::Names;
use super::resp::{self, Push};
use super::settings::RedisSettings;
use crate::{BrokerError, Event};

/// Channels in one SUBSCRIBE.
const CHUNK: usize = 1_000;
/// Interest changes waiting for the link.
const CHANGES_MAX: usize = 4_096;
const CANARY: Duration = Duration::from_secs(1);
/// A canary that did not come back for so long, while commands work, means a deaf connection.
const DEAF: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

struct Change {
    channels: Vec<ChannelName>,
    wanted: bool,
    done: oneshot::Sender<Result<(), BrokerError>>,
}

/// A handle to the link.
pub(super) struct Hearing {
    changes: mpsc::Sender<Change>,
    patience: Duration,
    canary: Arc<Canary>,
}

struct Canary {
    started: Instant,
    heard_at_ms: AtomicU64,
    deaf: Notify,
}

impl Canary {
    fn heard(&self) {
        self.heard_at_ms.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn age(&self) -> Option<Duration> {
        let heard = self.heard_at_ms.load(Ordering::Relaxed);
        (heard > 0).then(|| self.started.elapsed().saturating_sub(Duration::from_millis(heard - 1)))
    }
}

impl Hearing {
    pub(super) fn start(
        settings: Arc<RedisSettings>,
        names: Names,
        commands: Arc<Commands>,
        events: mpsc::Sender<Event>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let (changes, receiver) = mpsc::channel(CHANGES_MAX);
        let canary = Arc::new(Canary {
            started: Instant::now(),
            heard_at_ms: AtomicU64::new(0),
            deaf: Notify::new(),
        });
        let patience = settings.command_timeout;
        tasks.spawn(sing(names.clone(), Arc::clone(&commands), Arc::clone(&canary), stop.clone()));
        let link = Link {
            settings,
            names,
            commands,
            events,
            changes: receiver,
            wanted: HashSet::default(),
            canary: Arc::clone(&canary),
            hears: false,
        };
        tasks.spawn(link.run(stop.clone()));
        Self { changes, patience, canary }
    }

    pub(super) fn canary_age(&self) -> Option<Duration> {
        self.canary.age()
    }

    pub(super) async fn subscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        self.change(channels, true).await
    }

    pub(super) async fn unsubscribe(&self, channels: &[ChannelName]) -> Result<(), BrokerError> {
        self.change(channels, false).await
    }

    async fn change(&self, channels: &[ChannelName], wanted: bool) -> Result<(), BrokerError> {
        if channels.is_empty() {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        let change = Change { channels: channels.to_vec(), wanted, done };
        let sent = async {
            self.changes
                .send(change)
                .await
                .map_err(|_| BrokerError::unavailable("the broker has ended"))?;
            answer.await.map_err(|_| BrokerError::unavailable("the pub/sub connection was lost"))?
        };
        tokio::time::timeout(self.patience, sent).await.unwrap_or_else(|_| {
            Err(BrokerError::unavailable("the subscription was not confirmed in time"))
        })
    }
}

/// Publishes the canary and judges its age.
async fn sing(names: Names, commands: Arc<Commands>, canary: Arc<Canary>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(CANARY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unheard_since: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let mut command = redis::cmd("PUBLISH");
        command.arg(names.canary()).arg("1");
        let sent: Result<u64, _> = commands.run(&command).await;
        let young = canary.age().is_some_and(|age| age < CANARY * 2);
        if sent.is_err() || young {
            // Silence counts only while commands work.
            unheard_since = None;
            continue;
        }
        let since = unheard_since.get_or_insert_with(Instant::now);
        if since.elapsed() + CANARY >= DEAF {
            unheard_since = None;
            canary.deaf.notify_one();
        }
    }
}

struct Link {
    settings: Arc<RedisSettings>,
    names: Names,
    commands: Arc<Commands>,
    events: mpsc::Sender<Event>,
    changes: mpsc::Receiver<Change>,
    wanted: HashSet<ChannelName>,
    canary: Arc<Canary>,
    hears: bool,
}

/// Confirmations are answered in the order asked.
type Awaiting = VecDeque<(usize, Option<oneshot::Sender<Result<(), BrokerError>>>)>;

impl Link {
    async fn run(mut self, stop: CancellationToken) {
        let mut retry = RETRY_MIN;
        loop {
            let reason = tokio::select! {
                reason = self.hear(&mut retry) => reason,
                () = stop.cancelled() => return,
            };
            if std::mem::replace(&mut self.hears, false) {
                tracing::warn!(%reason, "the pub/sub connection to Redis is lost");
                if self.events.send(Event::Interrupted).await.is_err() {
                    return;
                }
            }
            self.commands.set_hearing(false, &reason);
            let pause = tokio::time::sleep(retry.mul_f64(0.5 + rand::random::<f64>() / 2.0));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(change) = self.changes.recv() => self.refuse(change),
                    () = stop.cancelled() => return,
                }
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// Keeps a wish while there is no connection.
    fn refuse(&mut self, change: Change) {
        self.wish(&change);
        let _ = change.done.send(Err(BrokerError::unavailable("not connected to Redis")));
    }

    fn wish(&mut self, change: &Change) {
        for channel in &change.channels {
            if change.wanted {
                self.wanted.insert(channel.clone());
            } else {
                self.wanted.remove(channel);
            }
        }
    }

    /// One connection's life; why it ended.
    async fn hear(&mut self, retry: &mut Duration) -> String {
        let patience = self.settings.command_timeout * 2;
        let mut socket = match tokio::time::timeout(patience, connect(&self.settings)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return error,
            Err(_) => return "connecting took too long".to_owned(),
        };
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        let mut awaiting = Awaiting::new();
        let own = [self.names.own_channel(), self.names.all_channel(), self.names.canary()];
        let wishes: Vec<String> =
            self.wanted.iter().map(|channel| self.names.publications(channel)).collect();
        let all: Vec<String> = own.into_iter().chain(wishes).collect();
        for chunk in all.chunks(CHUNK) {
            let mut parts: Vec<&[u8]> = vec![b"SUBSCRIBE"];
            parts.extend(chunk.iter().map(String::as_bytes));
            if let Err(error) = socket.write_all(&resp::command(&parts)).await {
                return error.to_string();
            }
            awaiting.push_back((chunk.len(), None));
            // Read on while writing: the confirmations must not fill both socket buffers.
            while awaiting.len() > 2 {
                if let Err(error) = self.read(&mut socket, &mut buffer, &mut awaiting).await {
                    return error;
                }
            }
        }
        while !awaiting.is_empty() {
            match tokio::time::timeout(patience, self.read(&mut socket, &mut buffer, &mut awaiting))
                .await
            {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(_) => return "subscriptions were not confirmed in time".to_owned(),
            }
        }
        *retry = RETRY_MIN;
        self.hears = true;
        self.canary.heard();
        if self.events.send(Event::Restored).await.is_err() {
            return "nobody listens".to_owned();
        }
        self.commands.set_hearing(true, "");
        self.listen(socket, buffer, awaiting).await
    }

    async fn listen(
        &mut self,
        mut socket: TcpStream,
        mut buffer: BytesMut,
        mut awaiting: Awaiting,
    ) -> String {
        loop {
            tokio::select! {
                read = socket.read_buf(&mut buffer) => {
                    match read {
                        Ok(0) => return "Redis closed the connection".to_owned(),
                        Ok(_) => {}
                        Err(error) => return error.to_string(),
                    }
                    if let Err(error) = self.take_all(&mut buffer, &mut awaiting).await {
                        return error;
                    }
                }
                Some(change) = self.changes.recv() => {
                    if let Err(error) = self.apply(change, &mut socket, &mut awaiting).await {
                        return error;
                    }
                }
                () = self.canary.deaf.notified() => return "deaf: the canary does not come back".to_owned(),
                () = self.commands.moved() => return "the master moved".to_owned(),
            }
        }
    }

    /// Sends a change, together with those that wait behind it.
    async fn apply(
        &mut self,
        first: Change,
        socket: &mut TcpStream,
        awaiting: &mut Awaiting,
    ) -> Result<(), String> {
        let mut bytes = Vec::new();
        let mut next = Some(first);
        while let Some(change) = next {
            self.wish(&change);
            let verb: &[u8] = if change.wanted { b"SUBSCRIBE" } else { b"UNSUBSCRIBE" };
            let names: Vec<String> =
                change.channels.iter().map(|channel| self.names.publications(channel)).collect();
            for chunk in names.chunks(CHUNK) {
                let mut parts: Vec<&[u8]> = vec![verb];
                parts.extend(chunk.iter().map(String::as_bytes));
                bytes.extend_from_slice(&resp::command(&parts));
            }
            awaiting.push_back((names.len(), Some(change.done)));
            next = self.changes.try_recv().ok();
        }
        socket.write_all(&bytes).await.map_err(|error| error.to_string())
    }

    async fn read(
        &mut self,
        socket: &mut TcpStream,
        buffer: &mut BytesMut,
        awaiting: &mut Awaiting,
    ) -> Result<(), String> {
        match socket.read_buf(buffer).await {
            Ok(0) => Err("Redis closed the connection".to_owned()),
            Ok(_) => self.take_all(buffer, awaiting).await,
            Err(error) => Err(error.to_string()),
        }
    }

    async fn take_all(
        &mut self,
        buffer: &mut BytesMut,
        awaiting: &mut Awaiting,
    ) -> Result<(), String> {
        while let Some(push) = resp::take(buffer).map_err(|garbled| garbled.to_string())? {
            match push {
                Push::Message(channel, body) => {
                    if let Some(event) = self.event(&channel, body)
                        && self.events.send(event).await.is_err()
                    {
                        return Err("nobody listens".to_owned());
                    }
                }
                Push::Confirmed => confirm(awaiting),
                Push::Fine => {}
                Push::Refused(error) => return Err(error),
            }
        }
        if buffer.is_empty() && buffer.capacity() < 4096 {
            buffer.reserve(64 * 1024);
        }
        Ok(())
    }

    fn event(&self, heard: &[u8], body: Bytes) -> Option<Event> {
        let heard = std::str::from_utf8(heard).ok()?;
        match self.names.channel_of(heard) {
            Some(name) => {
                let channel = self.wanted.get(name).cloned()?;
                let publication = publication(channel, &body);
                if publication.is_none() {
                    tracing::warn!(channel = name, "a publication cannot be read");
                }
                publication.map(Event::Publication)
            }
            None if heard == self.names.canary() => {
                self.canary.heard();
                None
            }
            None => Some(Event::Told(body)),
        }
    }
}

fn confirm(awaiting: &mut Awaiting) {
    if let Some((left, _)) = awaiting.front_mut() {
        *left = left.saturating_sub(1);
        if *left == 0
            && let Some((_, Some(done))) = awaiting.pop_front()
        {
            // Whoever asked may have given up.
            let _ = done.send(Ok(()));
        }
    }
}

/// Reads `offset SP epoch SP tag SP previous SP body`, as `publish.lua` writes it.
fn publication(channel: ChannelName, bytes: &Bytes) -> Option<Publication> {
    let mut fields = [""; 4];
    let mut at = 0;
    for field in &mut fields {
        let end = at + bytes[at..].iter().take(40).position(|byte| *byte == b' ')?;
        *field = std::str::from_utf8(&bytes[at..end]).ok()?;
        at = end + 1;
    }
    let body = bytes.slice(at..);
    let (position, previous) = match fields[0] {
        "-" => (None, None),
        offset => {
            let position = Position {
                offset: offset.parse().ok()?,
                epoch: Epoch::parse(fields[1])?,
                tag: Tag::parse(fields[2])?,
            };
            (Some(position), Some(Tag::parse(fields[3])?))
        }
    };
    Publication::from_body(channel, position, previous, &body).ok()
}

async fn connect(settings: &RedisSettings) -> Result<TcpStream, String> {
    let info = address::resolve(settings).await?;
    let (host, port) = match info.addr() {
        ConnectionAddr::Tcp(host, port) => (host.clone(), *port),
        _ => return Err("only redis:// addresses are served by this version".to_owned()),
    };
    let mut socket =
        TcpStream::connect((host.as_str(), port)).await.map_err(|error| error.to_string())?;
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    authenticate(&mut socket, &info).await?;
    Ok(socket)
}

async fn authenticate(socket: &mut TcpStream, info: &ConnectionInfo) -> Result<(), String> {
    let redis = info.redis_settings();
    let mut commands = Vec::new();
    if let Some(password) = redis.password() {
        let mut parts: Vec<&[u8]> = vec![b"AUTH"];
        parts.extend(redis.username().map(str::as_bytes));
        parts.push(password.as_bytes());
        commands.extend_from_slice(&resp::command(&parts));
    }
    commands.extend_from_slice(&resp::command(&[b"PING"]));
    socket.write_all(&commands).await.map_err(|error| error.to_string())?;
    let mut buffer = BytesMut::new();
    let mut left = 1 + usize::from(redis.password().is_some());
    while left > 0 {
        let read = socket.read_buf(&mut buffer).await.map_err(|error| error.to_string())?;
        if read == 0 {
            return Err("Redis closed the connection".to_owned());
        }
        while let Some(push) = resp::take(&mut buffer).map_err(|garbled| garbled.to_string())? {
            match push {
                Push::Refused(error) => return Err(error),
                _ => left -= 1,
            }
        }
    }
    Ok(())
}
