//! The Carillon gateway node. `ARCHITECTURE.md` tells a message's journey; read it first.

pub mod app;
pub mod application;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod dispatch;
pub mod heartbeat;
pub mod hub;
pub mod ids;
pub mod interests;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod notifications;
pub mod operator;
pub mod outbound;
pub mod policy;
pub mod presence;
pub mod relay;
pub mod rest;
pub mod revocations;
pub mod socket;
pub mod transport;
