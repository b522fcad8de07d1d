"""Strangers' tools: a cluster of real processes, plain HTTP, WebSocket and SSE listeners.

Knows the contract (paths, headers, envelopes), nothing of the code. Every wait has an end, no wait
is a guess: a listener is asked for a message and answers when it has come.
"""

import http.client
import json
import os
import queue
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.parse

import msgpack
import side_by_side
from websockets.sync.client import connect

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "deploy", "dev"))
from processes import Node, Redis, Secrets, wait_until  # noqa: E402

# Far longer than anything takes, on however busy a machine.
PATIENCE_SECONDS = 60


class Cluster:
    """Nodes over one Redis (or none yet), or one node with the embedded broker; all ends with the `with` block."""

    def __init__(self, binary, nodes=3, redis=True, extra_toml="", embedded=False):
        nodes, redis = (1, False) if embedded else (nodes, redis)
        self.binary = binary
        self.directory = tempfile.mkdtemp(prefix="carillon-stranger-")
        self.keys = Secrets()
        self.redis = Redis(self.directory)
        self.nodes = [
            Node(binary, self.directory, f"node-{i + 1}", self.keys,
                 None if embedded else self.redis.url, extra_toml=extra_toml)
            for i in range(nodes)
        ]
        self.start_redis = redis
        self.wait_ready = redis or embedded

    def __enter__(self):
        try:
            if self.start_redis:
                self.begin_redis()
            for node in self.nodes:
                node.start()
            if self.wait_ready:
                for node in self.nodes:
                    wait_until(f"{node.name} ready", node.ready, PATIENCE_SECONDS, node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin_redis(self):
        self.redis.start()
        wait_until("redis answers", self.redis.ready, PATIENCE_SECONDS, self.redis)

    def __exit__(self, *_):
        for process in [*self.nodes, self.redis]:
            process.kill()
        for node in self.nodes:
            told_by(node)
        shutil.rmtree(self.directory, ignore_errors=True)

    def token(self, user, **claims):
        return self.keys.token(user, **claims)

    def post(self, node, path, body, **headers):
        return call(node, "POST", path, body, {"X-API-Key": self.keys.api_key, **headers})

    def get(self, node, path):
        return call(node, "GET", path, None, {"X-API-Key": self.keys.api_key})

    def publish(self, node, channel, payload, type="message", **more):
        answer = self.post(node, "/publish",
                           {"channel": channel, "type": type, "payload": payload, **more})
        assert answer.status == 200, f"publish on {node.name}: {answer}"
        return answer.json

    def ws(self, node, user, *channels, codec=None, path="/ws", since=None, **query):
        listener = WsListener(node, self.token(user), channels, codec, path, since, query)
        return listener.wait_live(channels)

    def sse(self, node, user, *channels, last_event_id=None, path="/api/realtime/events", **query):
        listener = SseListener(node, self.token(user), channels, last_event_id, path, query)
        return listener.wait_live(channels)


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        try:
            self.json = json.loads(body) if body else None
        except ValueError:
            self.json = None

    @property
    def code(self):
        return self.json.get("code") if isinstance(self.json, dict) else None

    def __str__(self):
        return f"{self.status} {self.body[:300]!r}"


def call(node, method, path, body=None, headers=None, base="/api/realtime"):
    """One HTTP request; `body` is sent as JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=PATIENCE_SECONDS)
    headers = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    try:
        connection.request(method, base + path, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def ask_in_pieces(node, target):
    """A WebSocket handshake that does not come at once: a node reads it by another way in. The socket, nothing read."""
    connection = socket.create_connection(("127.0.0.1", node.port), timeout=60)
    # Without a delay of the kernel's own; the second piece comes when the first was read.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = (f"GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    connection.sendall(head[:50].encode())
    time.sleep(0.02)
    connection.sendall(head[50:].encode())
    return connection


class Listener:
    """What every kind of listener can be asked."""

    def __init__(self):
        self.inbox = queue.Queue(10_000)
        self.heard = []
        self.live = set()
        self.changed = threading.Condition()

    def _arrived(self, message):
        """Every message passes here; the welcome and `subscribed` say which channels are live."""
        payload = message.get("payload")
        if message.get("type") in ("connect", "subscribed") and isinstance(payload, dict):
            names = [entry["channel"] for entry in payload.get("channels", [])]
            with self.changed:
                self.live.update(names, [payload.get("channel") or message.get("channel")])
                self.changed.notify_all()
        self.inbox.put(message)

    def wait_live(self, channels):
        """Until the server has said that it listens for us: a publish from now on is heard."""
        with self.changed:
            if not self.changed.wait_for(lambda: set(channels) <= self.live, PATIENCE_SECONDS):
                raise AssertionError(f"subscribed to {self.live}, not {channels}")
        return self

    def wait(self, matches, what):
        """Reads until a message matches; all that was read stays in `heard`."""
        seen = []
        while True:
            try:
                message = self.inbox.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                raise AssertionError(f"{what} did not come; heard {seen}") from None
            if message is None:
                self.inbox.put(None)
                raise AssertionError(f"ended before {what}; heard {seen}")
            seen.append(message)
            self.heard.append(message)
            if matches(message):
                return message

    def wait_type(self, type):
        return self.wait(lambda m: m.get("type") == type, f"a message of type {type}")

    def wait_payload(self, payload):
        return self.wait(lambda m: m.get("payload") == payload, f"payload {payload}")

    def wait_closed(self):
        """Until the server's side is gone; what came before stays in `heard`."""
        while (message := self.inbox.get(timeout=PATIENCE_SECONDS)) is not None:
            self.heard.append(message)
        self.inbox.put(None)

    def times(self, payload):
        return sum(m.get("payload") == payload for m in self.heard)

    def payloads(self, type="message"):
        return [m["payload"] for m in self.heard if m.get("type") == type]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class WsListener(Listener):
    """A WebSocket client by the `websockets` library, JSON or MessagePack."""

    def __init__(self, node, token, channels=(), codec=None, path="/ws", since=None, more=None):
        super().__init__()
        self.binary = codec == "carillon.msgpack"
        query = [("token", token)] if token else []
        query += [("channel", c) for c in channels] + [*(more or {}).items()]
        query += [("since", since)] if since else []
        self.socket = connect(
            f"{node.ws}{path}?{urllib.parse.urlencode(query)}",
            subprotocols=[codec] if codec else None, open_timeout=PATIENCE_SECONDS, max_size=None,
            ping_interval=None)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for raw in self.socket:
                if self.binary:
                    assert isinstance(raw, bytes), "a text frame on the msgpack codec"
                    self._arrived(msgpack.unpackb(raw))
                else:
                    assert isinstance(raw, str), "a binary frame on the JSON codec"
                    self._arrived(json.loads(raw))
        except Exception:  # the connection was cut: what the tests want to see
            pass
        self.inbox.put(None)

    def send(self, **message):
        self.socket.send(msgpack.packb(message) if self.binary else json.dumps(message))

    def burst(self, messages):
        """Sends many in one write: the node reads them at one moment, whatever else the machine does."""
        with self.socket.protocol_mutex:
            for message in messages:
                self.socket.protocol.send_text(json.dumps(message).encode())
            self.socket.socket.sendall(b"".join(self.socket.protocol.data_to_send()))

    def request(self, **message):
        """Sends with an ack_id and returns the ack or the error."""
        self.send(ack_id="a1", **message)
        return self.wait(lambda m: m.get("ack_id") == "a1" and m["type"] in ("ack", "error"),
                         "an ack or error")

    def close(self):
        self.socket.close()


class SseListener(Listener):
    """An SSE client on a bare socket, as `curl -N` would be; the profile puts the envelope in data."""

    def __init__(self, node, token, channels=(), last_event_id=None, path="/api/realtime/events",
                 more=None):
        super().__init__()
        self.last_id = None
        query = urllib.parse.urlencode(
            [("token", token), *{"profile": "social", **(more or {})}.items()]
            + [("channel", c) for c in channels])
        self.connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        self.connection.request("GET", f"{path}?{query}", headers=headers)
        # A stream without an end owns its socket, so that closing the connection would not end it.
        self.socket = self.connection.sock
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, f"SSE: {self.answer.status} {self.answer.read()[:200]}"
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        data, ident = [], None
        try:
            while line := self.answer.readline():
                line = line.decode().rstrip("\r\n")
                if not line:
                    if data:
                        message = json.loads("\n".join(data))
                        message["_id"] = ident
                        self._arrived(message)
                    data = []
                elif line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif line.startswith("id:"):
                    ident = line[3:].strip()
        except Exception:
            pass
        self.inbox.put(None)

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.connection.close()


# Panics of any node that was started here; no fact may have caused one.
panics = []


def told_by(node):
    """Looks through an ended node's log: a panic ends a task, not the node, and shows nowhere else."""
    if not os.path.exists(node.log_path):
        return
    with open(node.log_path, errors="replace") as log:
        lines = log.readlines()
    panics.extend(f"{node.name}: {''.join(lines[at:at + 2]).strip()}"
                  for at, line in enumerate(lines) if "panicked at" in line)
    if Facts.any_failed:
        worth = [line.rstrip() for line in lines if " WARN " in line or " ERROR " in line]
        print(*(f"     {node.name}: {line[:300]}" for line in worth[-20:]), sep="\n", flush=True)


class Facts:
    """Runs facts, one line each, and counts."""

    any_failed = False

    def __init__(self):
        self.passed = self.failed = 0

    def finish(self):
        """Panics are facts that failed; the last line and the exit status."""
        for panic in panics:
            print(f"FAIL a node panicked: {panic}", flush=True)
        side_by_side.finish(self.passed, self.failed + len(panics))

    def check(self, name, test, *args):
        try:
            test(*args)
        except Exception as wrong:
            self.failed += 1
            Facts.any_failed = True
            print(f"FAIL {name}: {type(wrong).__name__}: {wrong}", flush=True)
        else:
            self.passed += 1
            print(f"ok   {name}", flush=True)
