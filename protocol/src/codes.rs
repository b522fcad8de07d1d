//! The table of error codes and the table of close codes. Nobody writes such a number elsewhere.
//! Source: contract, `protocol.md` 5 and rulings R23, R28.

use std::fmt;

macro_rules! error_codes {
    ($($variant:ident $name:literal $status:literal $meaning:literal;)*) => {
        /// What went wrong, as the caller reads it in `code`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $(#[doc = $meaning] $variant,)* }

        impl ErrorCode {
            /// Every code, in the contract's order.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];
            /// The name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(ErrorCode::$variant => $name,)* } }
            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn http_status(self) -> u16 { match self { $(ErrorCode::$variant => $status,)* } }
            /// One sentence for documentation.
            #[must_use]
            pub const fn meaning(self) -> &'static str { match self { $(ErrorCode::$variant => $meaning,)* } }
        }
    };
}

error_codes! {
    MissingToken "MISSING_TOKEN" 401 "No token was given.";
    InvalidToken "INVALID_TOKEN" 401 "The token or key is malformed, wrongly signed or not meant for us.";
    TokenExpired "TOKEN_EXPIRED" 401 "The token is past its `exp`.";
    Forbidden "FORBIDDEN" 403 "The policy does not allow it.";
    InvalidMessage "INVALID_MESSAGE" 400 "Not JSON, no type, or the wrong shape; `details` says where.";
    ChannelNotFound "CHANNEL_NOT_FOUND" 404 "No namespace matches the channel.";
    NotFound "NOT_FOUND" 404 "No such object.";
    MethodNotAllowed "METHOD_NOT_ALLOWED" 405 "The path does not know this method; see `Allow`.";
    RequestTimeout "REQUEST_TIMEOUT" 408 "The body did not arrive in time; the connection is closed.";
    Conflict "CONFLICT" 409 "The request contradicts the present state.";
    PayloadTooLarge "PAYLOAD_TOO_LARGE" 413 "The body or message is over the limit.";
    UnsupportedMediaType "UNSUPPORTED_MEDIA_TYPE" 415 "The body's content type is not understood.";
    MaxConnections "MAX_CONNECTIONS" 429 "The user has as many connections as they may.";
    SubscriptionLimit "SUBSCRIPTION_LIMIT" 429 "The connection has as many subscriptions as it may.";
    RateLimited "RATE_LIMITED" 429 "Too many requests; `details.retry_after_ms` says when to try again.";
    InternalError "INTERNAL_ERROR" 500 "A defect of the server; never carries internals.";
    Unavailable "UNAVAILABLE" 503 "Redis is out of reach; try again after `Retry-After`.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! close_codes {
    ($($variant:ident $code:literal $reason:literal $reconnect:literal;)*) => {
        /// Why the server closes a connection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CloseCode { $(#[doc = $reason] $variant,)* }

        impl CloseCode {
            /// Every close code.
            pub const ALL: &'static [CloseCode] = &[$(CloseCode::$variant,)*];
            /// The number in the close frame.
            #[must_use]
            pub const fn number(self) -> u16 { match self { $(CloseCode::$variant => $code,)* } }
            /// The reason, in the close frame and in `disconnect`.
            #[must_use]
            pub const fn reason(self) -> &'static str { match self { $(CloseCode::$variant => $reason,)* } }
            /// Whether a client should come back (`disconnect.payload.reconnect`).
            #[must_use]
            pub const fn reconnect(self) -> bool { match self { $(CloseCode::$variant => $reconnect,)* } }
        }
    };
}

close_codes! {
    Normal 1000 "closed" true;
    GoingAway 1001 "going away" true;
    Protocol 1002 "protocol error" false;
    Unsupported 1003 "unsupported data" false;
    InvalidUtf8 1007 "invalid UTF-8" false;
    TooLarge 1009 "message too big" false;
    Draining 1012 "node is draining" true;
    TokenExpired 4401 "token expired" true;
    TokenRevoked 4401 "token revoked" true;
    Disconnected 4403 "disconnected by an operator" false;
    HeartbeatTimeout 4408 "heartbeat timeout" true;
    SlowConsumer 4410 "slow consumer" true;
    Abuse 4429 "rate limit abuse" true;
}

impl CloseCode {
    /// Whether a `disconnect` message goes before the close frame (R23: not for 1002, 1003, 1007, 1009;
    /// nor for a close that the client asked for).
    #[must_use]
    pub const fn announced(self) -> bool {
        matches!(
            self,
            CloseCode::Draining
                | CloseCode::TokenExpired
                | CloseCode::TokenRevoked
                | CloseCode::Disconnected
                | CloseCode::HeartbeatTimeout
                | CloseCode::SlowConsumer
                | CloseCode::Abuse
        )
    }
}
