//! One Carillon node.

pub mod auth;
pub mod config;
