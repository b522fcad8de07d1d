//! The `carillon` program: reads the command line and runs what it says.

use std::process::ExitCode;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Freed memory goes back within a second: after a reconnect storm glibc kept six times as much
/// (`design/dependencies.md`). jemalloc reads the symbol `malloc_conf` at start.
#[expect(
    unsafe_code,
    reason = "naming an exported symbol is how jemalloc is configured without the environment"
)]
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: &[u8] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:4\0";

#[tokio::main]
async fn main() -> ExitCode {
    match carillon_gateway::cli::Cli::parse().run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("carillon: {error:#}");
            ExitCode::FAILURE
        }
    }
}
