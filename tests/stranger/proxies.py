"""Who is at the other end: X-Forwarded-For and the PROXY protocol, from configured proxies alone."""

import http.client
import json
import os
import shutil
import socket
import struct
import tempfile
import time
import urllib.parse

from websockets.sync.client import connect

from harness import PATIENCE_SECONDS, call, wait_until
from processes import Process, free_port
from reload import Alone

TRUSTING = 'trusted_proxies = ["127.0.0.1", "10.0.0.0/8"]\n'
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


class Behind(Alone):
    """A node that believes proxies on loopback."""

    def __init__(self, binary, trusting=TRUSTING):
        super().__init__(binary)
        with open(self.node.config_path) as file:
            text = file.read()
        with open(self.node.config_path, "w") as file:
            file.write(text.replace("[operator]", trusting + "[operator]", 1))

    def remote(self, user):
        """The address that the list of connections shows for a user's one connection."""
        path = f"/connections?user_id={user}"
        found = call(self.node, "GET", path, headers={"X-API-Key": self.keys.api_key}).json["connections"]
        assert len(found) == 1, found
        return found[0]["remote"]

    def seen(self, user, headers=None, preface=b"", port=None):
        """Connects a WebSocket with these headers, behind these first bytes; the address that is shown."""
        plain = socket.create_connection(("127.0.0.1", port or self.node.port), PATIENCE_SECONDS)
        plain.sendall(preface)
        with connect(f"ws://localhost/ws?token={self.keys.token(user)}", sock=plain, additional_headers=headers,
                     open_timeout=PATIENCE_SECONDS) as connection:
            connection.recv(PATIENCE_SECONDS)
            return self.remote(user)

    def refused(self, preface):
        """Whether the socket is closed after these bytes, without a word of HTTP."""
        with socket.create_connection(("127.0.0.1", self.node.port), PATIENCE_SECONDS) as plain:
            plain.settimeout(60)
            plain.sendall(preface)
            try:
                return plain.recv(100) == b""
            except ConnectionResetError:
                return True


def v2(source, command=0x21, extra=b""):
    if command == 0x20:
        return SIGNATURE + bytes([command, 0]) + struct.pack(">H", 0)
    addresses = socket.inet_aton(source) + socket.inet_aton("127.0.0.1") + struct.pack(">HH", 40000, 80) + extra
    return SIGNATURE + bytes([command, 0x11]) + struct.pack(">H", len(addresses)) + addresses


def facts(check, binary):
    with Behind(binary) as behind:
        check("X-Forwarded-For: the right-most address that is no proxy", forwarded, behind)
        check("PROXY protocol, both versions, whole and in pieces", headers, behind)
        check("broken and endless PROXY headers are closed, others are served", broken, behind)
        check("the address is shown for event streams and polls too", other_transports, behind)
        check("HAProxy with send-proxy and send-proxy-v2 is understood", haproxy, behind)
    with Behind(binary, "") as alone:
        check("nobody is believed who is not configured", nobody, alone)
    with Behind(binary, '[metrics]\nwebsocket_names = ["lobby", "game"]\n') as named:
        check("/ws/{name} is a metric label for configured names, else `other`", names, named)


def forwarded(behind):
    for given, shown in [
        ("203.0.113.7", "203.0.113.7"), ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7, 10.1.1.1", "203.0.113.7"), ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"), ("[2001:db8::7]:1", "2001:db8::7"), ("nonsense", "127.0.0.1"),
        ("", "127.0.0.1"),
    ]:
        assert behind.seen("xff", {"X-Forwarded-For": given}) == shown, given
    assert behind.seen("xff") == "127.0.0.1"


def headers(behind):
    assert behind.seen("v1", preface=b"PROXY TCP4 203.0.113.8 127.0.0.1 40000 80\r\n") == "203.0.113.8"
    assert behind.seen("v1", preface=b"PROXY TCP6 2001:db8::8 ::1 40000 80\r\n") == "2001:db8::8"
    assert behind.seen("v1", preface=b"PROXY UNKNOWN\r\n") == "127.0.0.1"
    assert behind.seen("v2", preface=v2("203.0.113.9")) == "203.0.113.9"
    assert behind.seen("v2", preface=v2("203.0.113.9", extra=b"\x04\0\x20" + bytes(32))) == "203.0.113.9"
    assert behind.seen("v2", preface=v2("", command=0x20)) == "127.0.0.1"
    # A balancer behind a balancer: the inner one is believed, and what it was told by the outer one.
    told = {"X-Forwarded-For": "6.6.6.6, 203.0.113.10"}
    assert behind.seen("both", told, v2("10.7.7.7")) == "203.0.113.10"
    assert behind.seen("both", told, v2("203.0.113.11")) == "203.0.113.11"
    for preface in (b"PROXY TCP4 203.0.113.12 127.0.0.1 40000 80\r\n", v2("203.0.113.12")):
        with socket.create_connection(("127.0.0.1", behind.node.port), PATIENCE_SECONDS) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(len(preface)):
                plain.sendall(preface[at:at + 1])
                time.sleep(0.002)  # So that the pieces travel apart.
            plain.sendall(b"GET /api/realtime/openapi.json HTTP/1.0\r\n\r\n")
            assert b" 200 " in plain.recv(100)


def broken(behind):
    assert behind.refused(b"PROXY TCP4 nonsense\r\n")
    assert behind.refused(b"PROXY " + b"x" * 200)
    assert behind.refused(SIGNATURE + b"\x11\x11\0\0")
    assert behind.refused(SIGNATURE + b"\x21\x11\0\x02ab")
    assert behind.refused(SIGNATURE + b"\x21\x11\xff\xff" + b"x" * 5000)
    assert behind.refused(b"PROXY TCP4 ")  # and then silence: closed by the time-out
    assert call(behind.node, "PUT", "/openapi.json").status == 405
    assert behind.seen("fine") == "127.0.0.1"


def other_transports(behind):
    headers = {"X-Forwarded-For": "203.0.113.20"}
    connection = http.client.HTTPConnection("127.0.0.1", behind.node.port, timeout=PATIENCE_SECONDS)
    connection.request("GET", f"/events?token={behind.keys.token('sse')}", headers=headers)
    stream = connection.getresponse()
    stream.readline()
    assert behind.remote("sse") == "203.0.113.20"
    poll = http.client.HTTPConnection("127.0.0.1", behind.node.port, timeout=60)
    token = behind.keys.token("poll")
    poll.request("GET", f"/api/v1/realtime/poll?user_id=poll&timeout=20&token={token}", headers=headers)
    def shown():
        try:
            return behind.remote("poll") == "203.0.113.20"
        except AssertionError:
            return False
    wait_until("the poll is shown", shown)
    behind_post = call(behind.node, "POST", "/users/poll/messages", {"type": "message", "payload": 1},
                       {"X-API-Key": behind.keys.api_key})
    assert behind_post.status == 200, behind_post
    assert poll.getresponse().status == 200
    poll.close(), stream.close(), connection.close()


def haproxy(behind):
    binary = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
    directory = tempfile.mkdtemp(prefix="carillon-haproxy-")
    try:
        for option, name in (("send-proxy", "one"), ("send-proxy-v2", "two")):
            port, config = free_port(), os.path.join(directory, f"{name}.cfg")
            with open(config, "w") as file:
                file.write(f"""defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port}
    default_backend nodes
backend nodes
    server node 127.0.0.1:{behind.node.port} {option} check
""")
            balancer = Process(f"haproxy-{name}", [binary, "-db", "-f", config], directory).start()
            try:
                def answers():
                    try:
                        return call(type("At", (), {"port": port}), "GET", "/openapi.json").status == 200
                    except (OSError, http.client.HTTPException):
                        return False
                wait_until("HAProxy passes requests", answers, process=balancer)
                # HAProxy's client is another loopback address than the balancer's own.
                plain = socket.socket()
                plain.bind(("127.0.0.9", 0))
                plain.settimeout(PATIENCE_SECONDS)
                plain.connect(("127.0.0.1", port))
                query = urllib.parse.urlencode({"token": behind.keys.token(name)})
                with connect(f"ws://localhost/ws?{query}", sock=plain) as connection:
                    json.loads(connection.recv(PATIENCE_SECONDS))
                    assert behind.remote(name) == "127.0.0.9", behind.remote(name)
            finally:
                balancer.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def nobody(alone):
    assert alone.seen("xff", {"X-Forwarded-For": "203.0.113.7"}) == "127.0.0.1"
    for preface in (b"PROXY TCP4 203.0.113.8 127.0.0.1 40000 80\r\n", v2("203.0.113.9")):
        with socket.create_connection(("127.0.0.1", alone.node.port), PATIENCE_SECONDS) as plain:
            plain.sendall(preface + b"GET /api/realtime/openapi.json HTTP/1.0\r\n\r\n")
            answer = plain.recv(100)
            assert answer.startswith(b"HTTP/1.1 400") or answer == b"", answer


def names(named):
    def connected(path):
        return connect(f"{named.node.ws}{path}?token={named.keys.token('ann')}", open_timeout=PATIENCE_SECONDS)

    def metric(line):
        operator = type("Operator", (), {"port": named.node.operator_port})
        return line in call(operator, "GET", "/metrics", base="").body.decode().splitlines()

    with connected("/ws/lobby") as a, connected("/ws/lobby") as b, connected("/ws/unknown1") as c, \
            connected("/ws/unknown2") as d, connected("/ws") as e:
        for connection in (a, b, c, d, e):
            connection.recv(PATIENCE_SECONDS)
        assert metric('carillon_websocket_connections{name="lobby"} 2')
        assert metric('carillon_websocket_connections{name="other"} 2')
        assert not metric('carillon_websocket_connections{name="unknown1"} 1')
    wait_until("they are counted out", lambda: metric('carillon_websocket_connections{name="lobby"} 0'))
    assert metric('carillon_websocket_connections_opened_total{name="lobby"} 2')
    assert metric('carillon_websocket_connections_opened_total{name="other"} 2')
