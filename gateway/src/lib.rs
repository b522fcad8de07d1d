//! One Carillon node.

pub mod auth;
pub mod config;
pub mod outbound;
pub mod policy;
