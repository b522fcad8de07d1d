//! The servers of a bench: each started on one core, waited for, and ended with its handle.

pub(crate) mod lineup;

use anyhow::{Context as _, Result, bail};
use rand::Rng as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A running process; ends with its value.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// The process's id. `setpriv` and `taskset` replace themselves by what they start: it is the server's own.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts `program` on `core`, its output into `log`.
    pub(crate) fn start(core: usize, program: &Path, args: &[String], log: &Path) -> Result<Self> {
        let log = std::fs::File::create(log)?;
        // What starts it may be killed before it can end it: then the kernel does.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string()])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{}", program.display()))?;
        Ok(Self { child })
    }

    /// Waits until `address` answers `GET path` with a status under 400 (or only accepts, without a
    /// path).
    pub(crate) fn wait(&mut self, address: SocketAddr, path: Option<&str>) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended: {status}");
            }
            if answers(address, path) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("{address} does not answer")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn answers(address: SocketAddr, path: Option<&str>) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let Some(path) = path else { return Ok(true) };
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: bench\r\n\r\n").as_bytes())?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(matches!(head[9], b'2' | b'3'))
    };
    ask().unwrap_or(false)
}

/// A loopback address that nobody listens on now, and that nobody else who asks here is given while this process lives: its
/// UDP socket of the same number says so.
pub(crate) fn free_address() -> Result<SocketAddr> {
    static GIVEN: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    // Below what outgoing connections take: whoever is started again finds its port free. And not where the tests' own
    // servers are (`free_port` in broker-client/tests and in deploy/dev).
    for _ in 0..1_000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(12_000..20_000)));
        let Ok(reservation) = UdpSocket::bind(address) else { continue };
        if TcpListener::bind(address).is_ok() {
            GIVEN.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
            return Ok(address);
        }
    }
    anyhow::bail!("no port is free")
}

/// A directory for one bench's logs and configuration; removed with its value.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// A new directory under the system's own.
    pub(crate) fn new() -> Result<Self> {
        let name = format!("carillon-bench-{}-{}", std::process::id(), secret(8));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// A random secret of `length` letters and digits.
pub(crate) fn secret(length: usize) -> String {
    let mut random = rand::rng();
    (0..length).map(|_| char::from(random.sample(rand::distr::Alphanumeric))).collect()
}

/// A Redis without persistence, answering.
pub(crate) fn start_redis(core: usize, address: SocketAddr, scratch: &Scratch) -> Result<Server> {
    let port = address.port().to_string();
    let args = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let args: Vec<String> = args.map(ToOwned::to_owned).into();
    let program = PathBuf::from("redis-server");
    let mut redis = Server::start(core, &program, &args, &scratch.0.join("redis.log"))?;
    redis.wait(address, None)?;
    Ok(redis)
}

/// A node's settings.
pub(crate) fn configuration(
    address: SocketAddr,
    redis: Option<SocketAddr>,
    jwt_secret: &str,
    api_key: &str,
) -> Result<String> {
    let operator = free_address()?;
    let redis = redis.map_or_else(
        || "mode = \"memory\"".to_owned(),
        |redis| format!("mode = \"standalone\"\nurl = \"redis://{redis}\""),
    );
    Ok(format!(
        "[server]\nlisten = \"{address}\"\n[operator]\nlisten = \"{operator}\"\n[redis]\n{redis}\n\
         [auth.jwt]\nsecret = \"{jwt_secret}\"\n\
         [auth.api_keys.bench]\nkey = \"{api_key}\"\nscopes = [\"realtime:admin\"]\n\
         [limits]\npublishes_per_second_per_channel = 1000000\nmessages_per_second = 1000000\n\
         polls_per_minute = 1000000\n[log]\nlevel = \"warn\"\n"
    ))
}
