//! REST under `/api/realtime`: routes and bodies only; what they do is the node's. `http-api.md`.

mod error;

pub use error::{ApiError, REQUEST_ID, with_request_id};
