//! A `redis-server` of a test's own, on loopback, that the test may kill, stop and start again.
//!
//! A shell holds it and ends it at the end of its input: also when the test process is killed.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Starts the server with the arguments after the file that it is to write to.
const KEEPER: &str = r#"log=$1; shift
redis-server "$@" >"$log" 2>&1 & server=$!
echo $server
read -r _
kill -9 $server 2>/dev/null
wait $server 2>/dev/null"#;

const START_MAX: Duration = Duration::from_secs(60);
/// What a server and a sentinel write when they listen.
const LISTENS: [&str; 2] = ["Ready to accept connections", "Sentinel ID is"];

pub(crate) struct RedisProcess {
    pub(crate) port: u16,
    _reservation: UdpSocket,
    directory: tempfile::TempDir,
    arguments: Vec<String>,
    /// Whole command line instead, for servers that are configured by file.
    other: Option<Vec<String>>,
    running: Option<Running>,
}

struct Running {
    keeper: Child,
    pid: u32,
}

impl RedisProcess {
    /// A port and a directory, and nobody there yet.
    pub(crate) fn absent(arguments: &[&str]) -> Self {
        let (port, reservation) = free_port();
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self {
            port,
            _reservation: reservation,
            directory: tempfile::tempdir().expect("a directory"),
            arguments,
            other: None,
            running: None,
        }
    }

    /// A running server without persistence.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut server = Self::absent(arguments);
        server.start_again();
        server
    }

    /// Further arguments for the next start.
    pub(crate) fn add_arguments(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    /// This command line, whole, from the next start on.
    pub(crate) fn be(&mut self, arguments: &[&str]) {
        self.other = Some(arguments.iter().map(|&argument| argument.to_owned()).collect());
    }

    /// Starts the server at its port and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        // What it said in its former life is no word of this one.
        let _ = std::fs::remove_file(self.log());
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(self.log());
        match &self.other {
            Some(arguments) => command.args(arguments),
            None => command
                .args([
                    "--port",
                    &self.port.to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--dir",
                ])
                .arg(self.directory.path())
                .args(&self.arguments),
        };
        let mut keeper =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
        let mut pid = String::new();
        let stdout = keeper.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut pid).expect("the server's id");
        let pid = pid.trim().parse().expect("a number");
        self.running = Some(Running { keeper, pid });
        self.wait_until_it_listens();
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Until this very process says so: at its port somebody else could answer.
    fn wait_until_it_listens(&self) {
        let deadline = Instant::now() + START_MAX;
        loop {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            if LISTENS.iter().any(|said| log.contains(said)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "these tests need `redis-server` in the path, and it must start; it says: {log}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9, now.
    pub(crate) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.keeper.stdin.take());
            let _ = running.keeper.wait();
        }
    }

    /// SIGSTOP, SIGCONT and their like.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.running.as_ref().expect("a running server").pid.to_string();
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill").success());
    }

    /// One command by `redis-cli`; its output.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(arguments)
            .output()
            .expect("redis-cli");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for RedisProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port below those that outgoing connections take, so that none of them can be faster; a cluster's bus, 10,000
/// above, stays below them too. Nobody else gets it while the UDP socket of the same number lives, in whichever
/// process: Redis itself has no use for that one. The cluster of the strangers' tools keeps to other ports.
fn free_port() -> (u16, UdpSocket) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 100).expect("below 100") * 20;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 2_000;
        let Ok(reservation) = UdpSocket::bind(("127.0.0.1", port)) else { continue };
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return (port, reservation);
        }
    }
}
