"""What the four documents' tests share: the stages they play on, and plain listeners.

A document's facts take a `Stage`: one embedded node, or three nodes over a real Redis, so that whatever a document promises
is asked of both. Knows the contract, nothing of the code.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from http.client import HTTPConnection

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "stranger"))
from harness import PATIENCE_SECONDS, Cluster, Listener, WsListener, call, wait_until  # noqa: E402, F401
from processes import sign_token  # noqa: E402, F401

RFC3339 = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
UUIDV7 = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
ENVELOPE = {"id", "type", "channel", "payload", "timestamp", "ack_id", "requestId", "offset", "epoch", "tag",
            "user_id"}
QUICK = """
[heartbeat]
interval = "1s"
[presence]
timeout = "2s"
offline_delay = "1s"
"""


def is_now(text):
    """An RFC 3339 time in UTC with milliseconds, of about now."""
    assert isinstance(text, str) and RFC3339.match(text), text
    then = time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert abs(time.time() - then) < 120, text


def is_now_ms(number):
    """Integer Unix milliseconds of about now."""
    assert isinstance(number, int) and not isinstance(number, bool), number
    assert abs(time.time() * 1000 - number) < 120_000, number


class Stage(Cluster):
    """A cluster that always has an `a`, a `b` and a `c`, if only under one name."""

    def __init__(self, binary, embedded, extra_toml=""):
        super().__init__(binary, embedded=embedded, extra_toml=extra_toml)
        self.binary, self.embedded = binary, embedded
        self.a, self.b, self.c = (self.nodes * 3)[:3]
        self.used = 0

    def name(self, stem="u"):
        """A name that no other fact has."""
        self.used += 1
        return f"{stem}{self.used}x{os.getpid() % 1000}"

    def other(self, extra_toml):
        """The same shape with other settings."""
        return Stage(self.binary, self.embedded, extra_toml)

    def user_post(self, node, user, path, body, **claims):
        return call(node, "POST", path, body, {"Authorization": f"Bearer {self.token(user, **claims)}"})

    def user_get(self, node, user, path, **claims):
        return call(node, "GET", path, None, {"Authorization": f"Bearer {self.token(user, **claims)}"})

    def to_user(self, node, user, type, payload):
        answer = self.post(node, f"/users/{user}/messages", {"type": type, "payload": payload})
        assert answer.status == 200, answer
        return answer.json

    def poll(self, node, user, method="GET", body=None, token=None, path="", **query):
        """One long poll of a user; `user_id` is theirs unless the query says otherwise."""
        headers = {"Authorization": f"Bearer {token or self.token(user)}"}
        if method == "GET":
            query = {"user_id": user, **query}
        else:
            body = {"user_id": user, **(body or {})}
        query = urllib.parse.urlencode({key: value for key, value in query.items() if value is not None})
        return call(node, method, f"/poll{path}?{query}", body, headers, base="/api/v1/realtime")

    def stream(self, node, path, user=None, headers=None, token=None, **query):
        if user or token:
            query["token"] = token or self.token(user)
        return Stream(node, path, query, headers)

    def settings(self):
        """The settings as `print-config` shows them, defaults included: {"limits": {"queue_bytes": "256KiB"}}."""
        shown = subprocess.run([self.binary, "print-config", "--dev"], text=True, capture_output=True, check=True)
        sections, section = {}, {}
        for line in shown.stdout.splitlines():
            if line.startswith("["):
                section = sections.setdefault(line.strip("[]"), {})
            elif " = " in line:
                key, value = line.split(" = ", 1)
                section.setdefault(key.strip(), value.strip().strip('"'))
        return sections


class Stream(Listener):
    """An event stream as bytes say it: each event as {event, data, id, retry, comment, lines}."""

    def __init__(self, node, path, query=(), headers=None):
        super().__init__()
        self.connection = HTTPConnection("127.0.0.1", node.port, timeout=60)
        query = urllib.parse.urlencode(query, doseq=True)
        self.connection.request("GET", f"{path}?{query}", headers={"Accept": "text/event-stream", **(headers or {})})
        self.socket = self.connection.sock
        self.answer = self.connection.getresponse()
        self.status, self.headers = self.answer.status, self.answer.headers
        if self.status == 200:
            threading.Thread(target=self._read, daemon=True).start()
        else:
            self.body = self.answer.read()

    def _read(self):
        lines = []
        try:
            while line := self.answer.readline():
                line = line.decode().rstrip("\n").rstrip("\r")
                if line:
                    lines.append(line)
                elif lines:
                    self.inbox.put(self._event(lines))
                    lines = []
        except Exception:  # cut: what comes after the end is the end
            pass
        self.inbox.put(None)

    @staticmethod
    def _event(lines):
        fields = {"event": None, "data": None, "id": None, "retry": None, "comment": None, "lines": lines}
        data = []
        for line in lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "":
                fields["comment"] = value
            elif name == "data":
                data.append(value)
            else:
                fields[name] = value
        fields["data"] = "\n".join(data) if data else None
        return fields

    def event(self, name):
        """The next event of a name; its `data` read as JSON stands under `json`."""
        found = self.wait(lambda event: event["event"] == name, f"event {name}")
        found["json"] = json.loads(found["data"])
        return found

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.connection.close()


def handshake(node, path, **headers):
    """The HTTP answer to a WebSocket handshake that is refused."""
    return call(node, "GET", path, None, {**UPGRADE, **headers}, base="")


def closed_with(listener):
    """Waits for the end of a WebSocket; the code of its close frame."""
    listener.wait_closed()
    return listener.socket.protocol.close_rcvd and listener.socket.protocol.close_rcvd.code


def silence(listener, marker, unwanted):
    """Asserts that nothing unwanted came before the marker, which is waited for."""
    listener.wait(marker, "the marker")
    found = [m for m in listener.heard if unwanted(m)]
    assert not found, found


def raw_silent(node, token):
    """A WebSocket that never says or answers anything; the close code that ends it."""
    with socket.create_connection(("127.0.0.1", node.port), PATIENCE_SECONDS) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        connection.sendall(f"GET /ws?token={token} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        stream = connection.makefile("rb")
        assert b" 101 " in stream.readline()
        while stream.readline().strip():
            pass
        said = []
        while True:
            first, second = stream.read(2)
            size = second & 127
            if size == 126:
                size = int.from_bytes(stream.read(2), "big")
            payload = stream.read(size)
            if first & 15 == 1:
                said.append(json.loads(payload)["type"])
            if first & 15 == 8:
                assert said[-1] == "disconnect", said
                return int.from_bytes(payload[:2], "big")
