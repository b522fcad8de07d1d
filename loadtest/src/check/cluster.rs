//! The processes of a check: redis-server with its data on disk, Carillon nodes, and what breaks them.
//!
//! Owns every process it starts and ends it with its value. Knows nothing of clients.

use crate::server::{free_address, secret};
use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a started process may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A program that can be started again and again.
pub(crate) struct Process {
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    child: RefCell<Option<Child>>,
    paused: Cell<bool>,
}

impl Process {
    fn new(program: &Path, args: Vec<String>, log: PathBuf) -> Self {
        let (child, paused) = (RefCell::new(None), Cell::new(false));
        Self { program: program.to_owned(), args, log, child, paused }
    }

    /// Starts it; it writes into its log.
    pub(crate) fn start(&self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{}", self.program.display()))?;
        self.paused.set(false);
        *self.child.borrow_mut() = Some(child);
        Ok(())
    }

    /// The process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.borrow().as_ref().map(Child::id)
    }

    /// Whether it runs; how it ended stays to be asked once.
    pub(crate) fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut child = self.child.borrow_mut();
        let Some(running) = child.as_mut() else { return Ok(None) };
        let status = running.try_wait()?;
        if status.is_some() {
            *child = None;
        }
        Ok(status)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("not running")?, signal).context("kill")
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self) -> Result<()> {
        self.paused.set(true);
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) -> Result<()> {
        self.paused.set(false);
        self.signal(Signal::CONT)
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGKILL, and gone when this returns.
    pub(crate) fn kill(&self) -> Result<()> {
        let child = self.child.borrow_mut().take();
        if let Some(mut child) = child {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Waits until it ended by itself.
    pub(crate) async fn wait(&self, patience: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} did not end within {patience:?}", self.program.display());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many of its lines hold this.
    pub(crate) fn said(&self, words: &str) -> usize {
        let text = std::fs::read(&self.log).unwrap_or_default();
        memchr::memmem::find_iter(&text, words).count()
    }

    /// The last lines that it wrote.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2_000)..]).into_owned();
        format!("{}:\n{text}", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.paused.get() {
            let _gone = self.go_on();
        }
        let _gone = self.kill();
    }
}

/// A redis-server that keeps its data in an append-only file.
pub(crate) struct Redis {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    data: PathBuf,
}

impl Redis {
    fn new(directory: &Path) -> Result<Self> {
        let address = free_address()?;
        let data = directory.join("redis");
        std::fs::create_dir_all(&data)?;
        let port = address.port().to_string();
        let folder = data.display().to_string();
        let args = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--auto-aof-rewrite-percentage",
            "0",
            "--dir",
            &folder,
        ];
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let process = Process::new(Path::new("redis-server"), args, directory.join("redis.log"));
        Ok(Self { process, address, data })
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&self) -> Result<()> {
        self.process.start()?;
        let end = Instant::now() + START_PATIENCE;
        while !self.ask(&["PING"]).await.is_ok_and(|answer| answer.starts_with("+PONG")) {
            if Instant::now() > end || self.process.ended()?.is_some() {
                bail!("redis-server does not answer\n{}", self.process.last_words());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Takes its data away; it must not run.
    pub(crate) fn lose_data(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.data)?;
        Ok(std::fs::create_dir_all(&self.data)?)
    }

    /// Copies its data as it stands, as a replica that lags has it.
    pub(crate) fn keep_copy(&self) -> Result<()> {
        let copy = self.copy();
        let _none = std::fs::remove_dir_all(&copy);
        copy_directory(&self.data, &copy)
    }

    /// Puts the copy in place of the data; it must not run.
    pub(crate) fn roll_back(&self) -> Result<()> {
        self.lose_data()?;
        copy_directory(&self.copy(), &self.data)
    }

    fn copy(&self) -> PathBuf {
        self.data.with_extension("copy")
    }

    /// One command and its answer, as it is on the wire.
    pub(crate) async fn ask(&self, words: &[&str]) -> Result<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let asked = async {
            let mut stream = tokio::net::TcpStream::connect(self.address).await?;
            let mut request = String::new();
            // A second command ends the connection, and so the answer.
            for words in [words, &["QUIT"]] {
                request.push_str(&format!("*{}\r\n", words.len()));
                for word in words {
                    request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
                }
            }
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(Duration::from_secs(2), asked).await.context("redis is silent")?
    }
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A Carillon node.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) client: SocketAddr,
    pub(crate) operator: SocketAddr,
}

/// What the nodes are told beside addresses.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) drain_period: Duration,
    pub(crate) drain_grace: Duration,
    pub(crate) history: u32,
    pub(crate) history_age: Duration,
    pub(crate) heartbeat_timeout: Duration,
}

/// Secrets of one run.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub(crate) jwt_secret: String,
    pub(crate) api_key: String,
}

impl Keys {
    /// New ones.
    pub(crate) fn new() -> Self {
        Self { jwt_secret: secret(48), api_key: secret(32) }
    }

    /// Headers of a backend's request.
    pub(crate) fn backend(&self) -> String {
        format!("X-API-Key: {}\r\nContent-Type: application/json\r\n", self.api_key)
    }
}

/// Redis and the nodes.
pub(crate) struct Cluster {
    pub(crate) redis: Redis,
    pub(crate) nodes: Vec<Node>,
    pub(crate) keys: Keys,
}

impl Cluster {
    /// Starts Redis; nodes are added by [`Cluster::add_node`].
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let redis = Redis::new(directory)?;
        redis.start().await?;
        Ok(Self { redis, nodes: Vec::new(), keys: Keys::new() })
    }

    /// Starts a node that reaches Redis at `redis` (itself, or a proxy before it).
    pub(crate) fn add_node(
        &mut self,
        binary: &Path,
        directory: &Path,
        redis: SocketAddr,
        settings: &Settings,
    ) -> Result<()> {
        let (client, operator) = (free_address()?, free_address()?);
        let name = format!("node-{}", self.nodes.len() + 1);
        let config = directory.join(format!("{name}.toml"));
        std::fs::write(&config, self.config(&name, client, operator, redis, settings))?;
        let args = vec!["serve".to_owned(), "--config".to_owned(), config.display().to_string()];
        let process = Process::new(binary, args, directory.join(format!("{name}.log")));
        process.start()?;
        self.nodes.push(Node { process, client, operator });
        Ok(())
    }

    fn config(
        &self,
        name: &str,
        client: SocketAddr,
        operator: SocketAddr,
        redis: SocketAddr,
        settings: &Settings,
    ) -> String {
        let Keys { jwt_secret, api_key } = &self.keys;
        let Settings { drain_period, drain_grace, history, history_age, heartbeat_timeout } =
            settings;
        let silence = heartbeat_timeout.as_secs();
        let (period, grace) = (drain_period.as_millis(), drain_grace.as_millis());
        let age = history_age.as_secs();
        format!(
            r#"[server]
listen = "{client}"
[operator]
listen = "{operator}"
[node]
id = "{name}"
[redis]
mode = "standalone"
url = "redis://{redis}"
[auth.jwt]
secret = "{jwt_secret}"
[auth.api_keys.check]
key = "{api_key}"
scopes = ["realtime:publish", "realtime:read", "realtime:manage", "realtime:admin"]
[drain]
period = "{period}ms"
grace = "{grace}ms"
[heartbeat]
interval = "5s"
timeout = "{silence}s"
[limits]
polls_per_minute = 0
publishes_per_second_per_channel = 0
[[namespaces]]
pattern = "presence:**"
subscribe = ["authenticated"]
presence = ["authenticated"]
[[namespaces]]
pattern = "room:**"
subscribe = ["authenticated"]
publish = ["authenticated"]
history = {{ size = {history}, age = "{age}s" }}
[[namespaces]]
pattern = "user:{{id}}"
subscribe = ["self"]
history = {{ size = 1000, age = "1h" }}
"#
        )
    }
}
