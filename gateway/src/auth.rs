//! Who is calling.

mod keys;
mod scope;

pub use keys::check_public_key;
pub use scope::Scope;
