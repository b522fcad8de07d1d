"""permessage-deflate and gzip: asked for, bounded, at once, and off where they are switched off."""

import gzip
import http.client
import json
import os
import socket
import subprocess
import urllib.parse
import zlib

from websockets.sync.client import connect

import slow
from harness import PATIENCE_SECONDS, call, wait_until
from reload import Alone

OFF = "[compression]\nwebsocket = false\nsse = false\nrest = false\n"
OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
TEXT = "a text that repeats itself, as JSON does; " * 40


def deflate(data):
    """As RFC 7692 says: blocks, a flush, less its last four bytes."""
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(data):
    return zlib.decompressobj(wbits=-15).decompress(data + b"\0\0\xff\xff")


def client_frame(first, payload):
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else bytes([0x80 | 126]) + len(payload).to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + payload  # masked with zeros


class Raw:
    """A WebSocket by hand: what a library hides is seen."""

    def __init__(self, alone, *extension_lines):
        self.socket = socket.create_connection(("127.0.0.1", alone.node.port), PATIENCE_SECONDS)
        lines = "".join(line + "\r\n" for line in extension_lines)
        self.socket.sendall((f"GET /ws?token={alone.keys.token('raw')}&channel=room:raw HTTP/1.1\r\nHost: x\r\n"
                             "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                             f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{lines}\r\n").encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        self.head = head.decode()
        assert " 101 " in self.head, self.head

    def more(self):
        got = self.socket.recv(65536)
        assert got, "closed"
        self.buffer += got

    def frame(self):
        """First byte and payload of the next frame."""
        while (taken := slow.take(self.buffer)) is None:
            self.more()
        first = self.buffer[0]
        _, payload, self.buffer = taken
        return first, payload

    def message(self, matches):
        """First byte and document of the next message that matches."""
        while True:
            first, payload = self.frame()
            document = json.loads(inflate(payload) if first & 0x40 else payload)
            if matches(document):
                return first, document

    def closed_with(self):
        """The code of the close frame."""
        while True:
            first, payload = self.frame()
            if first & 15 == 8:
                return int.from_bytes(payload[:2], "big")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


class Gzip:
    """An event stream in gzip, inflated as it comes."""

    def __init__(self, alone, user, channel, profile="social", rcvbuf=None):
        self.socket = socket.socket()
        if rcvbuf:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", alone.node.port))
        query = urllib.parse.urlencode({"token": alone.keys.token(user), "channel": channel, "profile": profile})
        self.socket.sendall(f"GET /events?{query} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: br, gzip\r\n\r\n".encode())
        self.answer = http.client.HTTPResponse(self.socket)
        self.answer.begin()
        assert self.answer.status == 200
        self.inflater, self.text, self.wire_bytes = zlib.decompressobj(wbits=31), b"", 0

    def read(self):
        more = self.answer.read1(65536)
        self.wire_bytes += len(more)
        self.text += self.inflater.decompress(more)
        return bool(more)

    def wait(self, words):
        while words not in self.text:
            assert self.read(), f"ended before {words}: {self.text[-300:]}"

    def events(self):
        """Payloads of all whole messages so far."""
        documents = [line[5:] for line in self.text.split(b"\n") if line.startswith(b"data:")]
        messages = (json.loads(document) for document in documents)
        return [m["payload"] for m in messages if m["type"] == "message"]

    def read_to_end(self):
        while self.read():
            pass
        assert self.inflater.eof and not self.inflater.unused_data, "the stream has no right end"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answer.close()
        self.socket.close()


def publish(alone, channel, payload, **more):
    answer = call(alone.node, "POST", "/publish", {"channel": channel, "type": "message", "payload": payload, **more},
                  {"X-API-Key": alone.keys.api_key})
    assert answer.status == 200, answer


def facts(check, binary):
    with Alone(binary, "[limits]\nmessages_per_second = 0\n") as alone:
        check("permessage-deflate: a library's client hears and says, JSON and MessagePack", library, alone)
        check("permessage-deflate: answered as agreed, small messages stay as they are", negotiated, alone)
        check("permessage-deflate: bombs, rubbish and unasked compression close with their codes", hostile, alone)
        check("gzip event stream: each event at once, with its id, and a right end", stream, alone)
        check("gzip event stream: a stalled reader is refilled and conflated without harm", stalled_stream, alone)
        check("gzip event stream: curl --compressed reads it live", curl, alone)
        check("gzip on REST and polls where it is asked for and worth it", rest, alone)
    with Alone(binary, OFF) as alone:
        check("compression is switched off by configuration", off, alone)


def library(alone):
    for codec in (None, "carillon.msgpack"):
        url = f"{alone.node.ws}/ws?channel=room:lib&token="
        subprotocols = [codec] if codec else None
        with connect(url + alone.keys.token("one"), subprotocols=subprotocols, max_size=None) as one, \
                connect(url + alone.keys.token("two"), max_size=None) as two:
            names = [extension.name for extension in one.protocol.extensions]
            assert names == ["permessage-deflate"], names
            while json.loads(two.recv(PATIENCE_SECONDS))["type"] != "subscribed":
                pass
            for size in (1, 300, 5_000, 900_000):
                payload = {"size": size, "body": ("abcdefghij" * (size // 10 + 1))[:size]}
                two.send(json.dumps({"type": "message", "channel": "room:lib", "payload": payload}))
                while (heard := json.loads(two.recv(PATIENCE_SECONDS)))["type"] != "message":
                    pass
                assert heard["payload"] == payload
            # A message in fragments, compressed as one.
            two.send(iter(['{"type":"ping","requestId":"f",', '"payload":{"x":"' + "y" * 2_000, '"}}']))
            while json.loads(two.recv(PATIENCE_SECONDS)).get("requestId") != "f":
                pass


def negotiated(alone):
    agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    with Raw(alone, OFFER + "; client_max_window_bits") as raw:
        assert f"sec-websocket-extensions: {agreed}\r\n" in raw.head.lower() + "\r\n", raw.head
        raw.message(lambda m: m["type"] == "subscribed")
        publish(alone, "room:raw", "short")
        first, _ = raw.message(lambda m: m.get("payload") == "short")
        assert first == 0x81 or len("short") > 256, hex(first)
        publish(alone, "room:raw", TEXT)
        first, _ = raw.message(lambda m: m.get("payload") == TEXT)
        assert first == 0xC1, hex(first)
        # Each message stands by itself: the same one again has the same bytes but for its id and place.
        with Raw(alone, OFFER) as other:
            other.message(lambda m: m["type"] == "subscribed")
            publish(alone, "room:raw", TEXT, id="same")
            frames = []
            for one in (raw, other):
                while True:
                    first, payload = one.frame()
                    if first == 0xC1 and b'"same"' in inflate(payload):
                        frames.append(payload)
                        break
            assert frames[0] == frames[1] and len(frames[0]) < len(TEXT) / 3
    for declined in ("; server_max_window_bits=10", "; mystery", "; server_no_context_takeover=1"):
        with Raw(alone, OFFER + declined) as raw:
            assert "extensions" not in raw.head.lower(), raw.head
    with Raw(alone, OFFER + "; server_max_window_bits=9", OFFER) as raw:
        assert agreed in raw.head
    with Raw(alone, OFFER + "; server_max_window_bits=15") as raw:
        assert agreed + "; server_max_window_bits=15" in raw.head


def hostile(alone):
    for first, payload, code in [
        (0xC1, deflate(bytes(3 << 20)), 1009), (0xC1, b"\xff" * 50, 1007), (0xC1, deflate(b"\xff\xfe"), 1007),
        (0xC9, b"", 1002), (0xA1, b"x", 1002), (0xC0, b"x", 1002),
    ]:
        with Raw(alone, OFFER) as raw:
            raw.socket.sendall(client_frame(first, payload))
            assert (found := raw.closed_with()) == code, (hex(first), found)
    with Raw(alone) as raw:
        raw.socket.sendall(client_frame(0xC1, deflate(b'{"type":"ping"}')))
        assert raw.closed_with() == 1002
    # Compressed small ones are heard, and what was said before a violation too.
    with Raw(alone, OFFER) as raw:
        raw.socket.sendall(client_frame(0xC1, deflate(b'{"type":"ping","requestId":"z"}')))
        raw.message(lambda m: m.get("requestId") == "z")


def stream(alone):
    with Gzip(alone, "ann", "room:gz") as ann:
        assert ann.answer.getheader("Content-Encoding") == "gzip"
        assert "accept-encoding" in ann.answer.getheader("Vary").lower()
        ann.wait(b"retry: 2000")
        ann.wait(b'"subscribed"')
        for n, payload in enumerate(("small", TEXT, TEXT * 30, "small again", os.urandom(3_000).hex())):
            publish(alone, "room:gz", {"n": n, "body": payload})
            ann.wait(f'"n": {n},'.encode())
            while not ann.text.endswith(b"\n\n"):
                ann.read()
            last = ann.text.rstrip(b"\n").rsplit(b"\n", 1)[1]
            assert last.startswith(b"id: "), last
        assert [event["n"] for event in ann.events()] == list(range(5))
        assert ann.wire_bytes < 12_000, ann.wire_bytes
        gone = call(alone.node, "DELETE", "/users/ann/connections", headers={"X-API-Key": alone.keys.api_key})
        assert gone.status in (200, 204), gone
        ann.read_to_end()
        assert b"event: disconnect" in ann.text


def stalled_stream(alone):
    # Ten times what queue and kernel hold where the newest is to be kept alone.
    for user, channel, count, size in (("sue", "room:gzslow", 80, 20_000), ("con", "metrics.gzslow", 200, 75_000)):
        noise = [os.urandom(size).hex() for _ in range(4)]
        with Gzip(alone, user, channel, rcvbuf=16 * 1024) as reader:
            reader.wait(b'"subscribed"')
            for n in range(count):
                publish(alone, channel, {"n": n, "body": noise[n % 4]})
            reader.wait(f'"n": {count - 1},'.encode())
            while not reader.text.endswith(b"\n\n"):
                reader.read()
            heard = [event["n"] for event in reader.events()]
            assert heard == sorted(set(heard)) and heard[-1] == count - 1, heard
            if user == "sue":
                assert heard == list(range(count)), heard
            else:
                assert len(heard) < count, "nothing was conflated: the reader was not slow"
            call(alone.node, "DELETE", f"/users/{user}/connections", headers={"X-API-Key": alone.keys.api_key})
            # zlib compares the check sum of everything that was sent, and only that.
            reader.read_to_end()


def curl(alone):
    query = urllib.parse.urlencode({"token": alone.keys.token("carl"), "channel": "room:curl"})
    reading = subprocess.Popen(["curl", "-sSN", "--compressed", "--max-time", "60", f"{alone.node.http}/events?{query}"],
                               stdout=subprocess.PIPE, text=True)
    try:
        def line(word):
            while word not in (text := reading.stdout.readline()):
                assert text, "the stream ended"
        line("retry: 2000")
        wait_until("carl listens", lambda: call(alone.node, "GET", "/channels/room:curl", headers={
            "X-API-Key": alone.keys.api_key}).json.get("subscribers") == 1, 15)
        for n in range(3):
            publish(alone, "room:curl", f"event {n} {TEXT}")
            line(f"event {n}")
            line("id: ")
    finally:
        reading.kill()
        reading.wait()


def rest(alone):
    plain = call(alone.node, "GET", "/openapi.json")
    assert "Content-Encoding" not in plain.headers
    asked = {"Accept-Encoding": "gzip", "X-API-Key": alone.keys.api_key}
    packed = call(alone.node, "GET", "/openapi.json", headers=asked)
    assert packed.headers["Content-Encoding"] == "gzip", packed.headers
    assert gzip.decompress(packed.body) == plain.body and len(packed.body) < len(plain.body) / 3
    assert "accept-encoding" in packed.headers["Vary"].lower()
    small = call(alone.node, "GET", "/users/nobody/presence", headers=asked)
    assert small.status == 200 and "Content-Encoding" not in small.headers, small.headers
    refused = call(alone.node, "GET", "/openapi.json", headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in refused.headers
    token = alone.keys.token("pol")
    poll = f"/api/v1/realtime/poll?user_id=pol&channels=room:pol&timeout=1&token={token}"
    begun = call(alone.node, "GET", poll, base="").json["last_poll_id"]
    publish(alone, "room:pol", TEXT)
    answer = call(alone.node, "GET", f"{poll}&last_poll_id={begun}", headers={"Accept-Encoding": "gzip"}, base="")
    assert answer.headers["Content-Encoding"] == "gzip", answer.headers
    assert TEXT in gzip.decompress(answer.body).decode()


def off(alone):
    with Raw(alone, OFFER) as raw:
        assert "extensions" not in raw.head.lower(), raw.head
        raw.socket.sendall(client_frame(0xC1, deflate(b'{"type":"ping"}')))
        assert raw.closed_with() == 1002
    asked = {"Accept-Encoding": "gzip"}
    assert "Content-Encoding" not in call(alone.node, "GET", "/openapi.json", headers=asked).headers
    connection = http.client.HTTPConnection("127.0.0.1", alone.node.port, timeout=PATIENCE_SECONDS)
    connection.request("GET", f"/events?token={alone.keys.token('eve')}", headers=asked)
    answer = connection.getresponse()
    assert answer.getheader("Content-Encoding") is None and answer.readline() == b"retry: 2000\n"
    answer.close(), connection.close()
