//! One line in the log for each answered request, at level `debug`, with the ids by which it is found again. No query
//! (it may hold a token) and no body. It must not know: routes.

use std::time::Instant;

use axum::extract::Request;
use axum::response::Response;
use http::Method;

use crate::rest::traceparent;

/// A request that is being answered.
pub(super) struct Entry {
    request_id: String,
    trace_id: Option<String>,
    method: Method,
    path: String,
    began: Instant,
}

impl Entry {
    /// `None` where nobody would read it.
    pub(super) fn begin(request: &Request, request_id: &str) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self {
            request_id: request_id.to_owned(),
            trace_id: traceparent(request.headers())
                .and_then(|parent| parent.split('-').nth(1).map(str::to_owned)),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            began: Instant::now(),
        })
    }

    /// Writes the line; of a stream, when its head is there.
    pub(super) fn answered(self, answer: &Response) {
        let Self { request_id, trace_id, method, path, began } = self;
        let took_us = began.elapsed().as_micros() as u64;
        let status = answer.status().as_u16();
        tracing::debug!(request_id, trace_id, %method, path, status, took_us, "answered");
    }
}
