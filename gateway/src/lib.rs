//! One Carillon node.

pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod outbound;
pub mod policy;
