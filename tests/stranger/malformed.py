"""Bad input of every kind: each gets the documented code, and the node serves on.

Tables: what is sent, and what protocol.md 5, http-api.md 1 and the rulings say comes back.
"""

import base64
import json
import os
import socket
import struct
import time
import urllib.parse

import msgpack
from harness import PATIENCE_SECONDS, call
from processes import base64url, sign_token

INVALID, FORBIDDEN = "INVALID_MESSAGE", "FORBIDDEN"
DEEP = "[" * 200 + "]" * 200

# Text frames on the JSON codec: an `error` with the code, and the connection lives on.
ENVELOPES = [
    ("empty text", "", INVALID),
    ("half an object", '{"type":"ping"', INVALID),
    ("trailing bytes", '{"type":"ping"}x', INVALID),
    ("null", "null", INVALID),
    ("an array", "[]", INVALID),
    ("a number", "42", INVALID),
    ("a string", '"ping"', INVALID),
    ("no type", "{}", INVALID),
    ("type null", '{"type":null}', INVALID),
    ("type a number", '{"type":5}', INVALID),
    ("type an object", '{"type":{}}', INVALID),
    ("type empty", '{"type":""}', INVALID),
    ("duplicate key", '{"type":"ping","type":"ping"}', INVALID),
    ("depth over 128", '{"type":"message","channel":"room:x","payload":' + DEEP + "}", INVALID),
    ("id over 256 bytes", json.dumps({"type": "message", "channel": "room:x", "id": "i" * 257}),
     INVALID),
    ("id a number", '{"type":"message","channel":"room:x","id":7}', INVALID),
    ("ack_id an object", '{"type":"ping","ack_id":{}}', INVALID),
    ("channel a number", '{"type":"subscribe","channel":5}', INVALID),
    ("subscribe without a channel", '{"type":"subscribe"}', INVALID),
    ("subscribe to an empty name", '{"type":"subscribe","channel":""}', INVALID),
    ("subscribe to a name with a space", '{"type":"subscribe","channel":"room:a b"}', INVALID),
    ("subscribe to a name with an umlaut", '{"type":"subscribe","channel":"room:ä"}', INVALID),
    ("subscribe to a name with a newline", '{"type":"subscribe","channel":"room:a\\nb"}', INVALID),
    ("subscribe to a name of 256 bytes", json.dumps({"type": "subscribe", "channel": "room:" +
                                                     "x" * 251}), INVALID),
    ("subscribe without a namespace", '{"type":"subscribe","channel":"nowhere"}',
     "CHANNEL_NOT_FOUND"),
    ("subscribe to another user", '{"type":"subscribe","channel":"user:bob"}', FORBIDDEN),
    ("subscribe to a granted channel", '{"type":"subscribe","channel":"admin-dashboard"}', FORBIDDEN),
    ("since a string", '{"type":"subscribe","channel":"room:x","payload":{"since":"x"}}', INVALID),
    ("since with a negative offset",
     '{"type":"subscribe","channel":"room:x","payload":{"since":{"offset":-1,"epoch":"e"}}}', INVALID),
    ("limit a string", '{"type":"subscribe","channel":"room:x","payload":{"limit":"x"}}', INVALID),
    ("filter with an unknown operator",
     '{"type":"subscribe","channel":"room:x","payload":{"filter":{"a":{"$no":1}}}}', INVALID),
    ("unsubscribe without a channel", '{"type":"unsubscribe"}', INVALID),
    ("publish without a namespace", '{"type":"message","channel":"nowhere"}', "CHANNEL_NOT_FOUND"),
    ("publish to a topic", '{"type":"message","channel":"topic:x"}', FORBIDDEN),
    ("publish to an entity", '{"type":"message","channel":"entity:Task"}', FORBIDDEN),
    ("publish to a user's own channel", '{"type":"message","channel":"user:mal"}', FORBIDDEN),
    ("publish to public", '{"type":"message","channel":"public:x"}', FORBIDDEN),
    ("typing where one may not publish", '{"type":"typing_start","channel":"topic:x"}', FORBIDDEN),
    ("join no presence channel", '{"type":"presence:join","channel":"room:x"}', INVALID),
    ("a status that is none", '{"type":"presence","payload":{"status":"flying"}}', INVALID),
    ("chat:send without a channel", '{"type":"chat:send","payload":{"text":"x"}}', INVALID),
    ("auth without a token", '{"type":"auth"}', INVALID),
    ("auth with a bad token", '{"type":"auth","payload":{"token":"x"}}', "INVALID_TOKEN"),
] + [
    # R1: the server's types.
    (f"a client publishes {type}", json.dumps({"type": type, "channel": "room:x", "payload": {}}),
     FORBIDDEN)
    for type in ("connect", "connection", "connected", "subscribed", "unsubscribed", "ack", "error",
                 "pong", "resync", "notification", "notification:new", "presence:sync",
                 "entity:created", "entity:updated", "feed_update", "count_update")
]

PACKED = [
    ("not MessagePack", b"\xc1", INVALID),
    ("cut short", msgpack.packb({"type": "ping"})[:-2], INVALID),
    ("trailing bytes", msgpack.packb({"type": "ping"}) + b"\x00", INVALID),
    ("an array", msgpack.packb(["ping"]), INVALID),
    ("type a number", msgpack.packb({"type": 1}), INVALID),
    ("NaN", msgpack.packb({"type": "message", "channel": "room:x", "payload": float("nan")}), INVALID),
    ("infinity", msgpack.packb({"type": "message", "channel": "room:x", "payload": float("inf")}),
     INVALID),
    ("a map of four billion", b"\xdf\xff\xff\xff\xff", INVALID),
    ("a string of four billion bytes", b"\x81\xa4type\xdb\xff\xff\xff\xff", INVALID),
]


def frame(opcode, payload=b"", fin=True, masked=True, reserved=0, length=None):
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    size = len(payload) if length is None else length
    bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (b"\0\0\0\0" if masked else b"") + payload


# Raw frames: the close codes that answer them.
FRAMES = [
    ("unmasked", frame(1, b'{"type":"ping"}', masked=False), (1002,)),
    ("reserved bit 1", frame(1, b"{}", reserved=4), (1002,)),
    ("reserved bit 2", frame(1, b"{}", reserved=2), (1002,)),
    ("reserved bit 3", frame(1, b"{}", reserved=1), (1002,)),
    ("opcode 3", frame(3), (1002,)),
    ("opcode 7", frame(7), (1002,)),
    ("opcode 11", frame(11), (1002,)),
    ("opcode 15", frame(15), (1002,)),
    ("a fragmented ping", frame(9, b"x", fin=False), (1002,)),
    ("a ping of 126 bytes", frame(9, b"x" * 126), (1002,)),
    ("a continuation of nothing", frame(0, b"x"), (1002,)),
    ("a new message inside a fragmented one", frame(1, b"{", fin=False) + frame(1, b"}"), (1002,)),
    ("invalid UTF-8", frame(1, b"\xff\xfe"), (1007,)),
    ("a surrogate in UTF-8", frame(1, b"\xed\xa0\x80"), (1007,)),
    ("UTF-8 cut short at the end", frame(1, b"\xe2\x82"), (1007,)),
    ("binary on the JSON codec", frame(2, b"{}"), (1003,)),
    ("a message over 1 MiB", frame(1, b"x" * (1024 * 1024 + 1)), (1009,)),
    ("a header that promises over 1 MiB", frame(1, b"x", length=1 << 30), (1009,)),
    ("fragments over 1 MiB", frame(1, b"x" * 600_000, fin=False) + frame(0, b"x" * 600_000), (1009,)),
    ("a length with the highest bit", frame(1, b"x", length=1 << 63), (1002, 1009)),
    ("a close of one byte", frame(8, b"x"), (1002,)),
    ("a close with code 999", frame(8, struct.pack("!H", 999)), (1002,)),
    ("a close with code 1005", frame(8, struct.pack("!H", 1005)), (1002,)),
    ("a close with code 1006", frame(8, struct.pack("!H", 1006)), (1002,)),
    ("a close whose reason is no UTF-8", frame(8, struct.pack("!H", 1000) + b"\xff"), (1007,)),
]


def tokens(keys):
    """(what, token, code)."""
    now = int(time.time())
    good = {"sub": "mal", "exp": now + 600}
    head, body, mac = sign_token(keys.jwt, good).split(".")
    invalid = "INVALID_TOKEN"
    signed = lambda claims, **header: sign_token(  # noqa: E731
        keys.jwt, claims, {"alg": "HS256", "typ": "JWT", **header})
    none = base64url(json.dumps({"alg": "none"}).encode())
    return [
        ("no token", None, "MISSING_TOKEN"),
        ("not a token", "x", invalid),
        ("two parts", f"{head}.{body}", invalid),
        ("four parts", f"{head}.{body}.{mac}.x", invalid),
        ("another secret", sign_token("another-secret-of-fine-length-0123456789", good), invalid),
        ("a changed body", f"{head}.{base64url(json.dumps({**good, 'sub': 'bob'}).encode())}.{mac}",
         invalid),
        ("no signature", f"{head}.{body}.", invalid),
        ("alg none", f"{none}.{body}.", invalid),
        ("alg none with a signature", signed(good, alg="none"), invalid),
        ("alg RS256 signed with the secret", signed(good, alg="RS256"), invalid),
        ("alg unknown", signed(good, alg="XX1"), invalid),
        ("a header that is no JSON", f"{base64url(b'x')}.{body}.{mac}", invalid),
        ("a body that is no object", signed([1]), invalid),
        ("expired", signed({**good, "exp": now - 60}), "TOKEN_EXPIRED"),
        ("no exp", signed({"sub": "mal"}), invalid),
        ("exp a string", signed({**good, "exp": "soon"}), invalid),
        ("nbf in the future", signed({**good, "nbf": now + 600}), invalid),
        ("no user", signed({"exp": now + 600}), invalid),
        ("7,000 bytes of x", "x" * 7000, invalid),
    ]


def text(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


MESSAGE = {"channel": "room:x", "type": "message", "payload": 1}


def without(key):
    return {k: v for k, v in MESSAGE.items() if k != key}


# (what, method, path, body, headers, status, code)
REQUESTS = [
    ("publish: " + what, "POST", "/publish", text(body), {}, status, code)
    for what, body, status, code in [
        ("empty body", b"", 400, INVALID),
        ("half an object", b"{", 400, INVALID),
        ("null", None, 400, INVALID),
        ("an array", [], 400, INVALID),
        ("a string", "x", 400, INVALID),
        ("invalid UTF-8", b'{"channel":"room:x","type":"\xff"}', 400, INVALID),
        ("trailing bytes", text(MESSAGE) + b"x", 400, INVALID),
        ("duplicate key", b'{"channel":"room:x","channel":"room:y","type":"m","payload":1}', 400,
         INVALID),
        ("depth over 128", text(without("payload"))[:-1] + b',"payload":' + DEEP.encode() + b"}", 400,
         INVALID),
        ("no channel", without("channel"), 400, INVALID),
        ("channel a number", {**MESSAGE, "channel": 1}, 400, INVALID),
        ("channel empty", {**MESSAGE, "channel": ""}, 400, INVALID),
        ("channel with a space", {**MESSAGE, "channel": "room:a b"}, 400, INVALID),
        ("channel of 256 bytes", {**MESSAGE, "channel": "room:" + "x" * 251}, 400, INVALID),
        ("channel without a namespace", {**MESSAGE, "channel": "nowhere"}, 404, "CHANNEL_NOT_FOUND"),
        ("channel notifications", {**MESSAGE, "channel": "notifications"}, 400, INVALID),
        ("no type", without("type"), 400, INVALID),
        ("type a number", {**MESSAGE, "type": 1}, 400, INVALID),
        ("type empty", {**MESSAGE, "type": ""}, 400, INVALID),
        ("id a number", {**MESSAGE, "id": 1}, 400, INVALID),
        ("id over 256 bytes", {**MESSAGE, "id": "i" * 257}, 400, INVALID),
        ("idempotency_key an object", {**MESSAGE, "idempotency_key": {}}, 400, INVALID),
        ("exclude a string", {**MESSAGE, "exclude": "x"}, 400, INVALID),
        ("exclude.users a string", {**MESSAGE, "exclude": {"users": "x"}}, 400, INVALID),
        ("over 1 MiB", {**MESSAGE, "payload": "x" * (1024 * 1024 + 1)}, 413, "PAYLOAD_TOO_LARGE"),
    ]
] + [
    # What lies between the limit and what is sent is read: a client that still writes would never see the answer.
    ("publish: 20 MiB", "POST", "/publish", b'{"channel":"room:x","type":"m","payload":"' + b"x" * (20 << 20) + b'"}', {}, 413,
     "PAYLOAD_TOO_LARGE"),
    ("batch: over 16 MiB", "POST", "/publish/batch", b'{"messages":["' + b"x" * (17 << 20) + b'"]}', {}, 413,
     "PAYLOAD_TOO_LARGE"),
    ("publish: no content type", "POST", "/publish", text(MESSAGE), {"Content-Type": ""}, 415,
     "UNSUPPORTED_MEDIA_TYPE"),
    ("publish: text/plain", "POST", "/publish", text(MESSAGE), {"Content-Type": "text/plain"}, 415,
     "UNSUPPORTED_MEDIA_TYPE"),
    ("publish: no key", "POST", "/publish", text(MESSAGE), {"X-API-Key": None}, 401, "MISSING_TOKEN"),
    ("publish: a wrong key", "POST", "/publish", text(MESSAGE), {"X-API-Key": "wrong"}, 401,
     "INVALID_TOKEN"),
    ("publish: an empty key", "POST", "/publish", text(MESSAGE), {"X-API-Key": ""}, 401, None),
    ("publish: a bad bearer", "POST", "/publish", text(MESSAGE),
     {"X-API-Key": None, "Authorization": "Bearer x"}, 401, "INVALID_TOKEN"),
    ("publish: another scheme", "POST", "/publish", text(MESSAGE),
     {"X-API-Key": None, "Authorization": "Basic eDp4"}, 401, None),
    ("publish: GET", "GET", "/publish", None, {}, 405, "METHOD_NOT_ALLOWED"),
    ("publish: DELETE", "DELETE", "/publish", None, {}, 405, "METHOD_NOT_ALLOWED"),
    ("batch: GET", "GET", "/publish/batch", None, {}, 405, "METHOD_NOT_ALLOWED"),
    ("stats: POST", "POST", "/stats", b"{}", {}, 405, "METHOD_NOT_ALLOWED"),
    ("batch: no messages", "POST", "/publish/batch", b"{}", {}, 400, INVALID),
    ("batch: messages an object", "POST", "/publish/batch", text({"messages": {}}), {}, 400, INVALID),
    ("batch: 1,001 messages", "POST", "/publish/batch", text({"messages": [MESSAGE] * 1001}), {}, None,
     None),
    ("user message: no type", "POST", "/users/bob/messages", text({"payload": 1}), {}, 400, INVALID),
    ("user message: empty body", "POST", "/users/bob/messages", b"", {}, 400, INVALID),
    ("connection message: unknown id", "POST",
     "/connections/01890000-0000-7000-8000-000000000000/messages", text({"type": "m", "payload": 1}),
     {}, 404, "NOT_FOUND"),
    ("connection message: no id of ours", "POST", "/connections/x/messages",
     text({"type": "m", "payload": 1}), {}, 404, "NOT_FOUND"),
    ("connection message: no type", "POST",
     "/connections/01890000-0000-7000-8000-000000000000/messages", b"{}", {}, 400, INVALID),
    ("broadcast: no type", "POST", "/broadcast", b"{}", {}, 400, INVALID),
    ("entity: unknown action", "POST", "/entities/Task/1/events", text({"action": "burnt"}), {}, 400,
     INVALID),
    ("entity: no action", "POST", "/entities/Task/1/events", text({"data": {}}), {}, 400, INVALID),
    ("channels: a bad name", "GET", "/channels/a%20b", None, {}, 400, INVALID),
    ("channels: limit not a number", "GET", "/channels?limit=x", None, {}, 400, INVALID),
    ("history: limit not a number", "GET", "/channels/room:x/history?limit=x", None, {}, 400, INVALID),
    ("history: since not a position", "GET", "/channels/room:x/history?since=a:b:c", None, {}, 400,
     INVALID),
    ("history: no namespace", "GET", "/channels/nowhere/history", None, {}, 404, "CHANNEL_NOT_FOUND"),
    ("connections: unknown", "GET", "/connections/01890000-0000-7000-8000-000000000000", None, {}, 404,
     "NOT_FOUND"),
    ("connections: disconnect unknown", "DELETE",
     "/connections/01890000-0000-7000-8000-000000000000", None, {}, 404, "NOT_FOUND"),
    ("unknown path", "GET", "/nothing", None, {}, 404, "NOT_FOUND"),
    ("a path out of the tree", "GET", "/../../etc/passwd", None, {}, 404, "NOT_FOUND"),
    ("a path with bad percent", "GET", "/channels/%zz", None, {}, None, None),
    ("a path with a bad byte", "GET", "/channels/%ff", None, {}, 400, INVALID),
]

# Raw requests: the statuses that may answer them.
HEADERS = [
    ("not HTTP", b"hello\r\n\r\n", (400,)),
    ("HTTP/9.9", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", (400, 505)),
    ("a header of 500 kB", b"GET /ws HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 500_000 + b"\r\n\r\n",
     (400, 431)),
    ("1,000 headers", b"GET /ws HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000 + b"\r\n", (400, 431)),
    ("a negative length", b"POST /api/realtime/publish HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
     (400,)),
    ("two lengths", b"POST /api/realtime/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
     b"Content-Length: 2\r\n\r\nxx", (400,)),
    ("a control byte in a header", b"GET /ws HTTP/1.1\r\nHost: x\r\nX: a\x01b\r\n\r\n", (400,)),
]

UPGRADE = {"Host": "x", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": base64.b64encode(b"0" * 16).decode()}

HANDSHAKES = [
    ("no Upgrade", {"Upgrade": None}, (400, 426)),
    ("Upgrade to something else", {"Upgrade": "h2c"}, (400, 426)),
    ("no Connection", {"Connection": None}, (400, 426)),
    ("no key", {"Sec-WebSocket-Key": None}, (400,)),
    ("a short key", {"Sec-WebSocket-Key": "eA=="}, (400,)),
    ("version 8", {"Sec-WebSocket-Version": "8"}, (400, 426)),
    ("no version", {"Sec-WebSocket-Version": None}, (400, 426)),
]


def raw(node, data):
    """Sends bytes and returns the connection."""
    connection = socket.create_connection(("127.0.0.1", node.port), PATIENCE_SECONDS)
    connection.settimeout(PATIENCE_SECONDS)
    try:
        connection.sendall(data)
    except OSError:
        pass  # refused before the end of what we say: the answer tells
    return connection


def status_of(connection):
    head = b""
    with connection:
        while b"\r\n" not in head:
            chunk = connection.recv(65536)
            assert chunk, f"closed without an answer: {head!r}"
            head += chunk
    return int(head.split()[1])


def upgrade(path, changes=()):
    headers = {**UPGRADE, **dict(changes)}
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items() if v is not None)
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


def facts(check, cluster):
    a, b, _ = cluster.nodes
    token = cluster.token("mal")

    def refused(answer, status, code):
        if status is None:
            assert 400 <= answer.status < 500, answer
        else:
            assert answer.status == status, answer
        assert code is None or answer.code == code, answer
        assert answer.json and {"error", "code", "request_id"} <= set(answer.json), answer
        assert answer.headers["X-Request-Id"] == answer.json["request_id"], answer
        if status == 405:
            assert answer.headers["Allow"], "no Allow"

    def envelope(codec, data, code):
        # Each on a connection of its own: a case must not lean on another's subscriptions.
        with cluster.ws(a, "mal", codec=codec) as one:
            one.wait_type("connect")
            one.socket.send(data)
            error = one.wait_type("error")
            assert error["payload"]["code"] == code, error
            one.send(type="ping")
            one.wait_type("pong")

    for what, data, code in ENVELOPES:
        check(f"envelope: {what} is {code}", envelope, None, data, code)
    for what, data, code in PACKED:
        check(f"MessagePack: {what} is {code}", envelope, "carillon.msgpack", data, code)

    def bad_frame(data, codes, subprotocol=None):
        extra = {"Sec-WebSocket-Protocol": subprotocol} if subprotocol else {}
        with raw(b, upgrade(f"/ws?token={token}", extra)) as connection:
            stream = connection.makefile("rb")
            assert b" 101 " in stream.readline()
            while stream.readline().strip():
                pass
            try:
                connection.sendall(data)
            except OSError:
                pass
            while True:
                head = stream.read(2)
                assert len(head) == 2, "cut without a close frame"
                size = head[1] & 0x7F
                if size == 126:
                    size = struct.unpack("!H", stream.read(2))[0]
                payload = stream.read(size)
                if head[0] & 0x0F == 8:
                    code = struct.unpack("!H", payload[:2])[0]
                    assert code in codes, f"closed with {code}"
                    return

    for what, data, codes in FRAMES:
        check(f"frame: {what} closes with {codes[0]}", bad_frame, data, codes)
    check("frame: text on the MessagePack codec closes with 1003", bad_frame, frame(1, b"{}"), (1003,),
          "carillon.msgpack")

    def bad_token(place, value, code):
        query = "" if value is None else f"?token={urllib.parse.quote(value)}"
        headers = {} if value is None else {"Authorization": f"Bearer {value}"}
        if place == "WebSocket":
            answer = call(a, "GET", "/ws" + query, None, UPGRADE, base="")
        elif place == "SSE":
            answer = call(a, "GET", "/events" + query)
        else:
            answer = call(a, "GET", "/channels", None, headers)
        refused(answer, 401, code)

    for place in ("WebSocket", "SSE", "REST"):
        for what, value, code in tokens(cluster.keys):
            check(f"token: {what} on {place} is {code}", bad_token, place, value, code)

    def request(method, path, body, headers, status, code):
        headers = {"X-API-Key": cluster.keys.api_key, **headers}
        headers = {name: value for name, value in headers.items() if value is not None}
        refused(call(b, method, path, body, headers), status, code)

    for what, method, path, body, headers, status, code in REQUESTS:
        check(f"{what} is {status or '4xx'} {code or ''}", request, method, path, body, headers,
              status, code)

    def user_without_scope(method, path, body):
        answer = call(a, method, path, body, {"Authorization": f"Bearer {token}"})
        refused(answer, 403, FORBIDDEN)

    for method, path, body in [
        ("POST", "/broadcast", {"type": "m", "payload": 1}),
        ("POST", "/users/bob/messages", {"type": "m", "payload": 1}),
        ("POST", "/entities/Task/1/events", {"action": "created", "data": {}}),
        ("POST", "/publish", {**MESSAGE, "channel": "topic:x"}),
        ("GET", "/connections", None),
        ("GET", "/stats", None),
        ("DELETE", "/users/bob/connections", None),
        ("DELETE", "/channels/room:x/history", None),
    ]:
        check(f"a user without the scope: {method} {path} is FORBIDDEN", user_without_scope, method,
              path, body)

    def batch_answers_one_each():
        messages = [{**MESSAGE, "channel": "room:m"}, without("channel"),
                    {**MESSAGE, "channel": "nowhere"}, {**MESSAGE, "channel": "room:m"}]
        answer = cluster.post(a, "/publish/batch", {"messages": messages})
        assert answer.status == 200, answer
        codes = [result.get("code") for result in answer.json["results"]]
        assert codes == [None, INVALID, "CHANNEL_NOT_FOUND", None], answer

    check("a batch answers each message, bad ones with their error", batch_answers_one_each)

    def raw_request(data, statuses):
        status = status_of(raw(b, data))
        assert status in statuses, status

    for what, data, statuses in HEADERS:
        check(f"headers: {what} is {statuses[0]}", raw_request, data, statuses)
    for what, changes, statuses in HANDSHAKES:
        check(f"handshake: {what} is {statuses[0]}", raw_request,
              upgrade(f"/ws?token={token}", changes), statuses)

    def version_is_named():
        with raw(b, upgrade(f"/ws?token={token}", {"Sec-WebSocket-Version": "8"})) as connection:
            head = connection.recv(65536).lower()
        assert b"\r\nsec-websocket-version: 13\r\n" in head, head

    check("handshake: an answer to another version names ours", version_is_named)

    def request_ids():
        key = {"X-API-Key": cluster.keys.api_key}
        sane = call(a, "GET", "/stats", None, {**key, "X-Request-Id": "trace-1"})
        assert sane.headers["X-Request-Id"] == "trace-1", sane.headers
        wild = call(a, "GET", "/stats", None, {**key, "X-Request-Id": "x" * 5_000})
        assert wild.headers["X-Request-Id"] not in (None, "x" * 5_000)

    check("a sane X-Request-Id comes back, another is replaced", request_ids)

    def refused_channel_in_query():
        with cluster.ws(a, "mal", "room:ok") as one:
            one.send(type="subscribe", channel="user:bob")
            one.wait_type("error")
            cluster.publish(b, "room:ok", "still here")
            one.wait_payload("still here")

    check("a refused channel leaves the others live", refused_channel_in_query)

    def nothing_broke():
        for node in cluster.nodes:
            assert node.alive() and node.ready(), node.log_tail()
            with open(node.log_path, errors="replace") as log:
                assert "panicked" not in log.read(), node.log_tail(40)
        with cluster.ws(a, "mal", "room:end") as one:
            cluster.publish(b, "room:end", os.getpid())
            one.wait_payload(os.getpid())

    check("after all that every node lives, none panicked, and delivery works", nothing_broke)
