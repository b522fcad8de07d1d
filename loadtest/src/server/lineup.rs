//! Who can be in a bench and how each is started: ours, the floor, and the peers.
//!
//! A peer has the settings its users would give it: history where it keeps any, one process, the Redis beside it
//! on the same core. What is not installed is said, not skipped in silence.

use super::{Scratch, Server, free_address, secret};
use anyhow::{Context as _, Result, bail};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A server that a bench can start.
#[derive(Debug)]
pub(crate) struct Entrant {
    /// Its name in a table.
    pub(crate) name: &'static str,
    /// The profile that speaks to it: `loadtest run --target`.
    pub(crate) target: &'static str,
    /// Not one of ours, not one of the two that this program holds.
    pub(crate) peer: bool,
    /// Whether it has event streams.
    pub(crate) sse: bool,
    /// Whether publishes are requests that are answered.
    pub(crate) posts: bool,
    /// What it keeps of what was published, and how.
    pub(crate) history: &'static str,
    redis: bool,
    program: Program,
}

#[derive(Debug)]
enum Program {
    Own(&'static str),
    Carillon,
    Nginx,
    Node(&'static str),
    Bun(&'static str),
}

const fn ours(name: &'static str, redis: bool) -> Entrant {
    let history = "history on, as shipped";
    let program = Program::Carillon;
    Entrant {
        name,
        target: "carillon",
        peer: false,
        sse: true,
        posts: true,
        history,
        redis,
        program,
    }
}

const fn own(name: &'static str) -> Entrant {
    let history = "no history";
    let program = Program::Own(name);
    Entrant {
        name,
        target: name,
        peer: false,
        sse: false,
        posts: false,
        history,
        redis: false,
        program,
    }
}

const fn nchan(name: &'static str, redis: bool) -> Entrant {
    let history = "history: 1,000 messages or an hour a channel";
    let program = Program::Nginx;
    Entrant { name, target: "nchan", peer: true, sse: true, posts: true, history, redis, program }
}

const fn script(
    name: &'static str,
    target: &'static str,
    redis: bool,
    program: Program,
    history: &'static str,
) -> Entrant {
    Entrant { name, target, peer: true, sse: false, posts: false, history, redis, program }
}

/// All of them, in the order of a table.
pub(crate) const LINEUP: &[Entrant] = &[
    own("floor"),
    own("naive"),
    ours("carillon", false),
    ours("carillon+redis", true),
    nchan("nchan", false),
    nchan("nchan+redis", true),
    script("socketio", "socketio", false, Program::Node("socketio.mjs"), "no history"),
    script(
        "socketio+redis",
        "socketio",
        true,
        Program::Node("socketio.mjs"),
        "no history: this adapter keeps none",
    ),
    script("ws+redis", "plain", true, Program::Node("ws-redis.mjs"), "no history"),
    script("uws", "plain", false, Program::Bun("uws.mjs"), "no history, one process without Redis"),
];

/// The entrant of that name.
pub(crate) fn find(name: &str) -> Result<&'static Entrant> {
    LINEUP.iter().find(|one| one.name == name).with_context(|| {
        let names: Vec<&str> = LINEUP.iter().map(|one| one.name).collect();
        format!("{name} is no server that the bench knows: {}", names.join(", "))
    })
}

/// Where the programs are, and the core they run on.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// The gateway's binary.
    pub(crate) carillon: PathBuf,
    /// The directory of the peers' scripts and their `node_modules`.
    pub(crate) peers: PathBuf,
    /// See [`Server::start`].
    pub(crate) core: usize,
}

/// An entrant that answers, with what is needed to be let in. Ends with its value.
pub(crate) struct Running {
    /// Itself.
    pub(crate) server: Server,
    /// Its Redis and where that listens.
    pub(crate) redis: Option<(Server, SocketAddr)>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Carillon's: what signs tokens.
    pub(crate) jwt_secret: String,
    /// Carillon's: what publishes.
    pub(crate) api_key: String,
    _scratch: Scratch,
}

impl Entrant {
    /// What its version is, or why it cannot be started here.
    pub(crate) fn version(&self, places: &Places) -> Result<String> {
        const ADVICE: &str = "not installed (make bench-peers)";
        if self.redis {
            which("redis-server").context("redis-server is not installed")?;
        }
        let modules = places.peers.join("node_modules");
        match self.program {
            Program::Own(_) => Ok(env!("CARGO_PKG_VERSION").to_owned()),
            Program::Carillon => says(&places.carillon, &["--version"]),
            Program::Nginx => {
                if !Path::new(NCHAN).exists() {
                    bail!("Nchan is {ADVICE}");
                }
                says(&which("nginx").with_context(|| format!("nginx is {ADVICE}"))?, &["-v"])
            }
            Program::Node(script) => {
                let package = if script == "socketio.mjs" { "socket.io" } else { "ws" };
                let manifest = modules.join(package).join("package.json");
                let manifest = std::fs::read_to_string(manifest)
                    .map_err(|_| anyhow::anyhow!("{package} is {ADVICE}"))?;
                let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
                let node = says(&which("node").context("Node is not installed")?, &["--version"])?;
                Ok(format!("{} on Node {node}", manifest["version"].as_str().unwrap_or_default()))
            }
            Program::Bun(_) => {
                let bun = modules.join(".bin/bun");
                let version =
                    says(&bun, &["--version"]).map_err(|_| anyhow::anyhow!("Bun is {ADVICE}"))?;
                Ok(format!("in Bun {version}"))
            }
        }
    }

    /// Starts it on its core, with its Redis, and waits until it answers.
    pub(crate) fn start(&self, places: &Places) -> Result<Running> {
        let scratch = Scratch::new()?;
        let address = free_address()?;
        let (jwt_secret, api_key) = (secret(48), secret(40));
        let redis = if self.redis {
            let at = free_address()?;
            Some((super::start_redis(places.core, at, &scratch)?, at))
        } else {
            None
        };
        let redis_address = redis.as_ref().map(|(_, at)| *at);
        let port = address.port().to_string();
        let redis_url = redis_address.map(|at| format!("redis://{at}"));
        let (program, args, ready) = match self.program {
            Program::Own(name) => {
                let args = vec![name.to_owned(), "--listen".to_owned(), address.to_string()];
                (std::env::current_exe()?, args, None)
            }
            Program::Carillon => {
                let toml = super::configuration(address, redis_address, &jwt_secret, &api_key)?;
                let path = scratch.0.join("carillon.toml");
                std::fs::write(&path, toml)?;
                let args =
                    vec!["serve".to_owned(), "--config".to_owned(), path.display().to_string()];
                (places.carillon.clone(), args, Some("/api/realtime/openapi.json"))
            }
            Program::Nginx => {
                let path = scratch.0.join("nginx.conf");
                std::fs::write(
                    &path,
                    nchan_configuration(address, redis_url.as_deref(), &scratch),
                )?;
                let args = vec!["-c".to_owned(), path.display().to_string()];
                (which("nginx").context("nginx is not installed")?, args, Some("/ready"))
            }
            Program::Node(script) | Program::Bun(script) => {
                let bun = matches!(self.program, Program::Bun(_));
                let program = if bun {
                    places.peers.join("node_modules/.bin/bun")
                } else {
                    which("node").context("Node is not installed")?
                };
                let script = places.peers.join(script).display().to_string();
                (program, [script, port].into_iter().chain(redis_url).collect(), None)
            }
        };
        let log = scratch.0.join("server.log");
        let mut server = Server::start(places.core, &program, &args, &log)?;
        if let Err(error) = server.wait(address, ready) {
            bail!("{error}: {}", std::fs::read_to_string(&log).unwrap_or_default());
        }
        Ok(Running { server, redis, address, jwt_secret, api_key, _scratch: scratch })
    }
}

/// Debian's place for it.
const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

fn nchan_configuration(address: SocketAddr, redis: Option<&str>, scratch: &Scratch) -> String {
    let directory = scratch.0.display();
    let upstream = redis
        .map_or(String::new(), |url| format!("upstream redis {{ nchan_redis_server {url}; }}\n"));
    let pass = if redis.is_some() { "nchan_redis_pass redis;" } else { "" };
    format!(
        "load_module {NCHAN};\ndaemon off;\nmaster_process off;\n\
         pid {directory}/nginx.pid;\nerror_log {directory}/error.log;\n\
         worker_rlimit_nofile 20000;\nevents {{ worker_connections 19000; }}\n\
         http {{ access_log off; client_body_temp_path {directory}/body; keepalive_requests 100000000;\n\
         nchan_shared_memory_size 512m;\n{upstream}\
         server {{ listen {address} backlog=4096;\n\
         location /ready {{ return 204; }}\n\
         location /sub {{ nchan_subscriber websocket eventsource; nchan_channel_id $arg_channel; {pass} }}\n\
         location /pub {{ nchan_publisher; nchan_channel_id $arg_channel; {pass}\n\
         nchan_message_buffer_length 1000; nchan_message_timeout 1h; }} }} }}\n"
    )
}

/// A program in `PATH`, or where administrators' programs are, which `PATH` may lack.
fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// The first line of what a program says to arguments.
fn says(program: &Path, args: &[&str]) -> Result<String> {
    let output = std::process::Command::new(program)
        .args(args)
        .output()
        .with_context(|| program.display().to_string())?;
    let all = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&all).lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entrant_has_its_own_name_and_a_profile_that_the_driver_knows() {
        use clap::ValueEnum as _;
        for (at, one) in LINEUP.iter().enumerate() {
            assert!(crate::target::Kind::from_str(one.target, false).is_ok(), "{}", one.target);
            assert!(LINEUP[at + 1..].iter().all(|other| other.name != one.name), "{}", one.name);
            assert_eq!(find(one.name).expect("known").name, one.name);
        }
        assert!(find("nobody").expect_err("unknown").to_string().contains("nchan+redis"));
    }

    #[test]
    fn peer_that_is_not_there_is_said_with_the_way_to_install_it() {
        let places = Places { carillon: "/nowhere".into(), peers: "/nowhere".into(), core: 0 };
        for name in ["socketio", "uws"] {
            let error = find(name).expect("known").version(&places).expect_err("missing");
            assert!(error.to_string().contains("make bench-peers"), "{error}");
        }
    }
}
