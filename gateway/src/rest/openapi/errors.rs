//! What all calls have in common: ids of operations, error answers, headers; and the event stream, which is no
//! REST call but lives on a path of one.

use carillon_protocol::ErrorCode;
use serde_json::{Map, Value, json};

use super::calls;

/// A refusal: which error, when, and what its `details` may hold.
type Refused = (ErrorCode, &'static str, Value);

/// Calls whose body names a channel, or a connection.
const NAMES_IN_BODY: &[&str] = &["/publish", "/events"];
/// Calls that publish on a channel, and so count against its rate.
const RATED: &[&str] = &[
    "/publish",
    "/publish/batch",
    "/users/{user_id}/messages",
    "/entities/{entity}/{id}/events",
    "/events",
];
/// Calls that add to what a user may have.
const LIMITED: &str = "/subscriptions/";
/// Lists with numbered pages.
const PAGED: &[&str] = &["/notifications", "/subscriptions"];

/// Adds ids, error answers and headers to every call.
pub(super) fn add(document: &mut Value) {
    for (path, method, call) in calls(document) {
        call["operationId"] = operation_id(&method, &path).into();
        let body = call.get("requestBody").is_some();
        let parameters = call.get("parameters").is_some();
        let rated = method == "post" && RATED.contains(&path.as_str());
        let limited = method == "post" && path.starts_with(LIMITED);
        let missing = path.contains('{') || NAMES_IN_BODY.contains(&path.as_str()) && body;
        let links = links(&method, &path);
        let Some(responses) = call["responses"].as_object_mut() else { continue };
        responses.remove("default");
        for (status, response) in responses.iter_mut() {
            let mut headers = request_id();
            if status.starts_with('2') && method == "get" && PAGED.contains(&path.as_str()) {
                headers.extend(paging(path == "/notifications"));
            }
            if rated {
                headers.extend(rate());
            }
            response["headers"] = headers.into();
            if let Some(links) = links.as_ref().filter(|_| status == "201") {
                response["links"] = links.clone();
            }
        }
        let mut refused: Vec<Refused> = vec![
            (ErrorCode::MissingToken, "No credential, or none that is good", json!({})),
            (ErrorCode::Forbidden, "The credential does not allow it", json!({})),
            (
                ErrorCode::Unavailable,
                "Redis is out of reach: try again after `Retry-After`",
                json!({"retry_after_ms": 1000}),
            ),
        ];
        if body || parameters {
            let details = json!({"field": "channel", "line": 1, "column": 12});
            refused.push((
                ErrorCode::InvalidMessage,
                "Something cannot be read; `details` says where",
                details,
            ));
        }
        if missing {
            refused.push((
                ErrorCode::NotFound,
                "There is none, or it is somebody else's",
                json!({}),
            ));
        }
        if body {
            refused.push((
                ErrorCode::PayloadTooLarge,
                "The body is too large",
                json!({"limit_bytes": 131_072}),
            ));
            refused.push((
                ErrorCode::RequestTimeout,
                "The body did not arrive within 30 s, or nothing of it for 10 s",
                json!({}),
            ));
            refused.push((
                ErrorCode::UnsupportedMediaType,
                "The body is no uncompressed JSON in UTF-8",
                json!({}),
            ));
        }
        if rated {
            refused.push((
                ErrorCode::RateLimited,
                "The channel's rate is used up",
                json!({"retry_after_ms": 12}),
            ));
        }
        if limited {
            refused.push((
                ErrorCode::SubscriptionLimit,
                "The user has as many as they may",
                json!({"limit": 1000}),
            ));
        }
        for (code, description, details) in refused {
            responses.insert(code.http_status().to_string(), refusal(code, description, &details));
        }
    }
}

/// What can be done next with something created.
fn links(method: &str, path: &str) -> Option<Value> {
    let (parameter, next): (&str, &[(&str, &str)]) = match (method, path) {
        ("post", "/notifications") => (
            "notification_id",
            &[
                ("get", "/notifications/{notification_id}"),
                ("delete", "/notifications/{notification_id}"),
            ],
        ),
        ("post", "/subscriptions/resource" | "/subscriptions/topic" | "/subscriptions/query") => (
            "subscription_id",
            &[
                ("get", "/subscriptions/{subscription_id}"),
                ("patch", "/subscriptions/{subscription_id}"),
                ("patch", "/subscriptions/{subscription_id}/status"),
                ("delete", "/subscriptions/{subscription_id}"),
            ],
        ),
        _ => return None,
    };
    let link = |(method, path): &(&str, &str)| {
        let id = operation_id(method, path);
        let link = json!({"operationId": id, "parameters": {parameter: "$response.body#/id"}});
        (id, link)
    };
    let mut links: Map<String, Value> = next.iter().map(link).collect();
    if parameter == "notification_id" {
        let id = operation_id("post", "/notifications/{notification_id}/mark-read");
        let link = json!({"operationId": id, "parameters": {
            parameter: "$response.body#/id", "user_id": "$response.body#/recipients/0"}});
        links.insert(id, link);
    }
    Some(links.into())
}

fn operation_id(method: &str, path: &str) -> String {
    let words = path.split(['/', '-', '_', '.']).map(|word| word.trim_matches(['{', '}']));
    let words: Vec<&str> =
        std::iter::once(method).chain(words.filter(|word| !word.is_empty())).collect();
    words.join("_")
}

fn refusal(code: ErrorCode, description: &str, details: &Value) -> Value {
    let mut headers = request_id();
    if matches!(code, ErrorCode::Unavailable | ErrorCode::RateLimited) {
        headers.insert(
            "Retry-After".to_owned(),
            header("Seconds", &json!({"type": "integer", "minimum": 1})),
        );
    }
    if code == ErrorCode::MissingToken {
        headers
            .insert("WWW-Authenticate".to_owned(), header("`Bearer`", &json!({"type": "string"})));
    }
    let example = json!({"error": description, "code": code.name(), "details": details,
        "request_id": "019320f0-6c1e-7a52-8c37-3f6f0b5a9d11"});
    json!({
        "description": format!("{description} (`{}`)", names(code)),
        "headers": headers,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}, "example": example}},
    })
}

/// Codes that share a status with this one.
fn names(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::MissingToken => "MISSING_TOKEN`, `INVALID_TOKEN`, `TOKEN_EXPIRED",
        ErrorCode::NotFound => "NOT_FOUND`, `CHANNEL_NOT_FOUND",
        other => other.name(),
    }
}

fn header(description: &str, schema: &Value) -> Value {
    json!({"description": description, "schema": schema})
}

fn request_id() -> Map<String, Value> {
    let described = header(
        "Id of the request: the caller's, if it sent a sane one",
        &json!({"type": "string"}),
    );
    Map::from_iter([("X-Request-Id".to_owned(), described)])
}

fn rate() -> Map<String, Value> {
    let number = |description: &str| header(description, &json!({"type": "integer", "minimum": 0}));
    Map::from_iter([
        ("X-RateLimit-Limit".to_owned(), number("Publishes a second that the channel takes")),
        ("X-RateLimit-Remaining".to_owned(), number("How many are left now")),
        ("X-RateLimit-Reset".to_owned(), number("When all are there again, Unix seconds")),
    ])
}

fn paging(as_of: bool) -> Map<String, Value> {
    let mut headers = Map::from_iter([
        (
            "X-Total-Count".to_owned(),
            header("How many there are on all pages", &json!({"type": "integer", "minimum": 0})),
        ),
        (
            "Link".to_owned(),
            header("The next page, `rel=\"next\"`, where there is one", &json!({"type": "string"})),
        ),
    ]);
    if as_of {
        let described = header("The list's moment, for `as_of`", &json!({"type": "integer"}));
        headers.insert("X-As-Of".to_owned(), described);
    }
    headers
}

/// `GET /events`: the event stream.
pub(super) fn add_stream(document: &mut Value) {
    let query = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "required": false, "description": description, "schema": schema});
    document["paths"]["/events"]["get"] = json!({
        "tags": ["Events"],
        "summary": "Opens the event stream.",
        "description": "Server-sent events without an end. `event:` is a message's type, `data:` its payload, `id:` a cursor: an \
                        EventSource that comes back with `Last-Event-ID` misses nothing that history still holds.",
        "parameters": [
            query("channel", "Subscribe to these; repeatable, or comma-separated", json!({"type": "string"})),
            query("since", "A cursor, as `Last-Event-ID`", json!({"type": "string"})),
            query("profile", "How messages are dressed", json!({"type": "string", "enum": ["social", "uno", "dnr", "excore"]})),
            query("token", "The JWT, where no header can be sent", json!({"type": "string"})),
            {"name": "Last-Event-ID", "in": "header", "required": false, "description": "The last `id:` seen", "schema": {"type": "string"}},
        ],
        "responses": {
            "200": {"description": "The stream", "content": {"text/event-stream": {"schema": {"type": "string"}, "example":
                "event: connection\nid: AQEKdXNlcjp1LTEyAAAA\ndata: {\"connection_id\":\"0a1b2c3d4e5f-0123456789abcdef\"}\n\n"}}},
            "204": {"description": "The user was disconnected by an operator: do not come back for a minute"},
            "429": {"description": "The user has as many connections as they may (`MAX_CONNECTIONS`)", "content": {"application/json": {
                "schema": {"$ref": "#/components/schemas/ErrorBody"},
                "example": {"error": "Too many connections", "code": "MAX_CONNECTIONS", "details": {"limit": 10}, "request_id": null}}}},
        },
        "security": [{"bearer": []}],
    });
}
