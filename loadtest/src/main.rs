//! `loadtest`: the load driver, the two servers it compares with, and the bench over all of them.
//!
//! An outsider: it knows Carillon only by its protocol, never by its code.

mod bench;
mod check;
mod compare;
mod floor;
mod http;
mod mark;
mod naive;
mod notifications;
mod opening;
mod page;
mod process;
mod publisher;
mod redis;
mod report;
mod results;
mod sample;
mod scenarios;
mod server;
mod subscriber;
mod sweep;
mod tally;
mod target;
mod token;
mod websocket;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The least a server can do: one write() a delivery, framed once
    Floor {
        #[arg(long, default_value = "127.0.0.1:8090")]
        listen: SocketAddr,
    },
    /// The naive server: tungstenite, a task and a broadcast receiver a connection
    Naive {
        #[arg(long, default_value = "127.0.0.1:8091")]
        listen: SocketAddr,
    },
    /// One scenario against one server
    Run(Box<scenarios::Options>),
    /// Every row of the table on every server, medians against the floor
    Bench(bench::Options),
    /// Results as one HTML page with tables and plots, on standard output
    Report(page::Options),
    /// What changed between two files of results
    Compare(compare::Options),
    /// What the same work costs as nodes, channels, listeners or connections grow
    Sweep(sweep::Options),
    /// Notifications: an empty store beside 100,000 for 1,000 users, and what Redis holds for each
    Notifications(notifications::Options),
    /// A cluster, clients that come back, a nemesis, and a verdict
    Check(check::Options),
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Floor { listen } => floor::serve(listen)?,
        Command::Naive { listen } => naive::serve(listen)?,
        Command::Bench(options) => bench::bench(&options)?,
        Command::Report(options) => {
            std::io::stdout().write_all(page::page(&options)?.as_bytes())?;
        }
        Command::Compare(options) => {
            if !compare::compare(&options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Sweep(options) => sweep::sweep(&options)?,
        Command::Notifications(options) => notifications::bench(&options)?,
        Command::Run(options) => {
            let report = scenarios::run(&options)?;
            if !options.json {
                eprint!("{}", report.human());
            }
            println!("{}", serde_json::to_string(&report)?);
        }
        Command::Check(options) => {
            if !check::check(&options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
