//! The command line: which subcommands there are. Each one's work is in its own file.
//! Source: contract, `operations.md` 1.

mod backoff;
mod listen;
mod publish;
mod serve;
mod settings;
mod token;
mod top;

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::auth::hash_key;
use crate::config::Config;
use crate::socket::Tls;
use settings::{ServeArgs, SourceArgs};

/// A horizontally scaled realtime gateway: WebSocket, SSE, long poll and REST over Redis.
#[derive(Debug, Parser)]
#[command(name = "carillon", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Without a subcommand: `carillon serve`.\n\nExamples:\n  carillon --dev\n  carillon serve --config carillon.toml\n  carillon publish --channel public:news --payload '{\"text\":\"hello\"}'"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node (the default).
    #[command(
        after_help = "Examples:\n  carillon serve --dev\n  carillon serve --config carillon.toml --redis-url redis://localhost:6379\n  carillon serve --set limits.connections=50000 --set 'cors.origins=[\"https://app.example\"]'"
    )]
    Serve(ServeArgs),
    /// Judge the configuration and name every mistake; exit code 1 if there is one.
    #[command(
        after_help = "Examples:\n  carillon check-config --config carillon.toml\n  CARILLON__REDIS__URL=redis://localhost carillon check-config"
    )]
    CheckConfig(SourceArgs),
    /// Print the effective configuration as TOML, secrets as ***.
    #[command(
        after_help = "Examples:\n  carillon print-config --dev\n  carillon print-config --config carillon.toml | grep -A8 '\\[limits\\]'"
    )]
    PrintConfig(SourceArgs),
    /// Sign a token with the configured secret.
    #[command(
        after_help = "Examples:\n  carillon token --user alice --config carillon.toml\n  carillon token --user alice --ttl 7d --channels admin-dashboard,chat.*\n  carillon token --user worker --scope 'realtime:publish realtime:read'\n  carillon token --user alice --channels '{\"subscribe\":[\"admin-dashboard\"]}' --secret \"$SECRET\""
    )]
    Token(token::TokenArgs),
    /// Print the hash of an API key, for auth.api_keys.NAME.key_hash.
    #[command(
        after_help = "Examples:\n  carillon hash-key my-long-random-key\n  openssl rand -base64 33 | tee key.txt | carillon hash-key"
    )]
    HashKey {
        /// The key; read from standard input when it is left out.
        key: Option<String>,
    },
    /// Publish one message, or one a line.
    #[command(
        after_help = "Examples:\n  carillon publish --channel public:news --payload '{\"text\":\"hello\"}' --api-key \"$KEY\"\n  carillon publish --channel chat.general --payload hello --token \"$TOKEN\"\n  tail -F app.log | carillon publish --channel topic:log --from -"
    )]
    Publish(publish::PublishArgs),
    /// Watch channels in the terminal.
    #[command(
        after_help = "Examples:\n  carillon listen --channel public:news --token \"$TOKEN\"\n  carillon listen --channel chat.general --channel news --json | jq .payload"
    )]
    Listen(listen::ListenArgs),
    /// A live view of the cluster: nodes, connections, messages a second.
    #[command(
        after_help = "Examples:\n  carillon top --api-key \"$KEY\"\n  carillon top --url https://realtime.example --api-key \"$KEY\" --interval 5s\n  carillon top --api-key \"$KEY\" --json --count 1 | jq .totals"
    )]
    Top(top::TopArgs),
    /// Print the version.
    #[command(after_help = "Examples:\n  carillon version")]
    Version,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// It could not be done; the sentence is for people.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command.unwrap_or(Command::Serve(self.serve)) {
            Command::Serve(args) => serve::run(args).await,
            Command::CheckConfig(args) => {
                let config = Config::load(args.sources())?;
                config.server.tls.as_ref().map(Tls::new).transpose()?;
                config.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
                let mode = if config.dev { "development" } else { "production" };
                print(&format!(
                    "The configuration is good ({mode} mode, {} namespaces).",
                    config.namespaces.len()
                ))
            }
            Command::PrintConfig(args) => {
                let text =
                    Config::load(args.sources())?.to_toml().context("a value TOML cannot write")?;
                print(text.trim_end())
            }
            Command::Token(args) => print(&token::make(&args, jiff::Timestamp::now().as_second())?),
            Command::HashKey { key } => {
                let key = key.map_or_else(key_from_input, Ok)?;
                anyhow::ensure!(!key.is_empty(), "the key is empty");
                print(&hash_key(&key))
            }
            Command::Publish(args) => publish::run(args).await,
            Command::Listen(args) => listen::run(args).await,
            Command::Top(args) => top::run(args).await,
            Command::Version => print(&format!("carillon {}", env!("CARGO_PKG_VERSION"))),
        }
    }
}

/// One line on standard output. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn key_from_input() -> anyhow::Result<String> {
    let mut key = String::new();
    std::io::stdin()
        .read_to_string(&mut key)
        .context("the key cannot be read from standard input")?;
    Ok(key.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests;
