"""TLS on the client port: every transport, certificates that change under live connections, hostile peers."""

import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse

from websockets.sync.client import connect

import slow
from harness import PATIENCE_SECONDS, wait_until
from reload import Alone


def make_pair(directory, name):
    """A self-signed certificate for loopback; its paths."""
    cert, key = (os.path.join(directory, f"{name}.{kind}") for kind in ("crt", "key"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


class Secure(Alone):
    """A node that ends TLS itself. `served.crt` and `served.key` may be replaced."""

    def __init__(self, binary):
        super().__init__(binary)
        self.served = make_pair(self.directory, "served")
        cert, key = self.served
        with open(self.node.config_path) as file:
            text = file.read()
        with open(self.node.config_path, "w") as file:
            file.write(text.replace("[operator]", f'tls.cert = "{cert}"\ntls.key = "{key}"\n[operator]', 1))

    def trust(self, cert=None):
        return ssl.create_default_context(cafile=cert or self.served[0])

    def replace(self, cert, key):
        """As deployments do: another file moves over each."""
        for source, target in zip((cert, key), self.served):
            with open(source, "rb") as file, open(target + ".new", "wb") as fresh:
                fresh.write(file.read())
            os.replace(target + ".new", target)

    def ws(self, user, *channels):
        query = urllib.parse.urlencode([("token", self.keys.token(user))] + [("channel", c) for c in channels])
        return connect(f"wss://127.0.0.1:{self.node.port}/ws?{query}", ssl=self.trust(),
                       open_timeout=PATIENCE_SECONDS, max_size=None, ping_interval=None)

    def call(self, method, path, body=None):
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.node.port, timeout=PATIENCE_SECONDS, context=self.trust())
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"X-API-Key": self.keys.api_key, "Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")

    def publish(self, channel, payload):
        status, body = self.call("POST", "/api/realtime/publish",
                                 {"channel": channel, "type": "message", "payload": payload})
        assert status == 200, body

    def shown(self):
        """The name in the certificate that a new handshake shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.node.port), PATIENCE_SECONDS) as plain:
            with context.wrap_socket(plain) as secure:
                shown = ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True))
        text = subprocess.run(["openssl", "x509", "-noout", "-subject"], input=shown, text=True,
                              capture_output=True, check=True).stdout
        return text.strip().rsplit("=", 1)[1].strip()


def receive(connection, matches):
    while True:
        message = json.loads(connection.recv(PATIENCE_SECONDS))
        if matches(message):
            return message


def facts(check, binary):
    with Secure(binary) as secure:
        check("wss: subscribe, publish, large messages both ways", websocket, secure)
        check("wss: a stalled reader is refilled, in order, once", stalled, secure)
        check("wss: an operator's disconnect arrives as 4403, then TLS ends cleanly", disconnected, secure)
        check("https: curl hears an event stream at once, polls and publishes", curl, secure)
        check("https: carillon publish and listen trust the system's authorities", terminal, secure, binary)
        check("TLS speaks HTTP/1.1 by ALPN, from TLS 1.2 on", versions, secure)
        check("TLS: silent and foreign peers are closed, the node lives", hostile, secure)
        check("certificates: changed files are shown, a broken pair is not, nobody is cut", certificates, secure)


def websocket(secure):
    with secure.ws("ann", "room:tls") as ann, secure.ws("ben", "room:tls") as ben:
        receive(ann, lambda m: m["type"] == "subscribed"), receive(ben, lambda m: m["type"] == "subscribed")
        for size in (1, 16_000, 16_385, 700_000):
            payload = {"body": "x" * size, "size": size}
            ann.send(json.dumps({"type": "message", "channel": "room:tls", "payload": payload}))
            for connection in (ann, ben):
                heard = receive(connection, lambda m: m["type"] == "message")
                assert heard["payload"] == payload, heard["payload"]["size"]
        for n in range(50):
            secure.publish("room:tls", n)
        assert [receive(ben, lambda m: m["type"] == "message")["payload"] for _ in range(50)] == list(range(50))


def stalled(secure):
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    plain.settimeout(PATIENCE_SECONDS)
    plain.connect(("127.0.0.1", secure.node.port))
    with secure.trust().wrap_socket(plain, server_hostname="127.0.0.1") as reader:
        rest = slow.upgrade(reader, secure.keys.token("slow"), "room:slow")
        for n in range(slow.MESSAGES):
            secure.publish("room:slow", {"n": n, "body": slow.BODY})
        heard = [m["payload"]["n"] for m in slow.read(reader, rest) if m["type"] == "message"]
        assert heard == list(range(slow.MESSAGES)), heard


def disconnected(secure):
    plain = socket.create_connection(("127.0.0.1", secure.node.port), PATIENCE_SECONDS)
    # A cut without close_notify would raise here: `suppress_ragged_eofs` hides it otherwise.
    with secure.trust().wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as reader:
        buffer = slow.upgrade(reader, secure.keys.token("gone"), "room:x")
        while b"subscribed" not in buffer:
            buffer += reader.recv(4096)
        status, _ = secure.call("DELETE", "/api/realtime/users/gone/connections")
        assert status == 200 or status == 204, status
        while more := reader.recv(4096):
            buffer += more
    assert b'"disconnect"' in buffer and (4403).to_bytes(2, "big") in buffer, buffer[-200:]


def curl(secure):
    base = f"https://127.0.0.1:{secure.node.port}"
    common = ["curl", "-sS", "--cacert", secure.served[0], "--max-time", "30"]
    query = urllib.parse.urlencode({"token": secure.keys.token("eve"), "channel": "room:sse"})
    stream = subprocess.Popen([*common, "-N", f"{base}/api/realtime/events?{query}"], stdout=subprocess.PIPE, text=True)
    try:
        def line(word):
            while word not in (text := stream.stdout.readline()):
                assert text, "the stream ended"
            return text
        line("room:sse")
        for n in range(3):
            published = subprocess.run(
                [*common, "-H", f"X-API-Key: {secure.keys.api_key}", "-H", "Content-Type: application/json",
                 "-d", json.dumps({"channel": "room:sse", "type": "message", "payload": f"event {n}"}),
                 f"{base}/api/realtime/publish"], capture_output=True, text=True, check=True)
            assert json.loads(published.stdout)["id"], published.stdout
            line(f"event {n}")
    finally:
        stream.kill()
        stream.wait()
    poll = f"{base}/api/v1/realtime/poll?timeout=1&user_id=eve&token={secure.keys.token('eve')}"
    answer = subprocess.run([*common, poll], capture_output=True, text=True, check=True)
    assert "last_poll_id" in answer.stdout, answer.stdout


def terminal(secure, binary):
    env = {**os.environ, "SSL_CERT_FILE": secure.served[0]}
    url = ["--url", f"https://localhost:{secure.node.port}"]
    listen = subprocess.Popen([binary, "listen", *url, "--channel", "room:term", "--json", "--token",
                               secure.keys.token("term")], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        def listens():
            _, body = secure.call("GET", "/api/realtime/channels/room:term")
            return body.get("subscribers") == 1
        wait_until("the terminal listens", listens)
        subprocess.run([binary, "publish", *url, "--channel", "room:term", "--payload", "over TLS", "--api-key",
                        secure.keys.api_key], env=env, check=True, capture_output=True, timeout=30)
        assert json.loads(listen.stdout.readline())["payload"] == "over TLS"
    finally:
        listen.kill()
        listen.wait()


def versions(secure):
    def handshake(**settings):
        context = secure.trust()
        if "alpn" in settings:
            context.set_alpn_protocols(settings["alpn"])
        context.maximum_version = settings.get("most", ssl.TLSVersion.MAXIMUM_SUPPORTED)
        with socket.create_connection(("127.0.0.1", secure.node.port), PATIENCE_SECONDS) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                return secured.version(), secured.selected_alpn_protocol()

    assert handshake(alpn=["h2", "http/1.1"]) == ("TLSv1.3", "http/1.1")
    assert handshake(most=ssl.TLSVersion.TLSv1_2) == ("TLSv1.2", None)
    try:
        handshake(alpn=["h2"])
        raise AssertionError("HTTP/2 alone was accepted")
    except ssl.SSLError:
        pass


def hostile(secure):
    silent = socket.create_connection(("127.0.0.1", secure.node.port), PATIENCE_SECONDS)
    silent.settimeout(PATIENCE_SECONDS)
    late = {}

    def shakes_hands_late_and_says_nothing():
        # A slow handshake and a silent connection behind it are one silence (10 s): it ends before another one does that
        # began with the handshake.
        with socket.create_connection(("127.0.0.1", secure.node.port), PATIENCE_SECONDS) as plain:
            time.sleep(5)
            with secure.trust().wrap_socket(plain, server_hostname="127.0.0.1") as peer, \
                    socket.create_connection(("127.0.0.1", secure.node.port), PATIENCE_SECONDS) as other:
                peer.settimeout(PATIENCE_SECONDS)
                late["answer"] = peer.recv(1)
                late["other lives"] = not select.select([other], [], [], 0)[0]

    shaking = threading.Thread(target=shakes_hands_late_and_says_nothing)
    shaking.start()
    for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4096), b"\x16\x03\x01\xff\xff"):
        with socket.create_connection(("127.0.0.1", secure.node.port), PATIENCE_SECONDS) as peer:
            peer.sendall(garbage)
            peer.shutdown(socket.SHUT_WR)
            try:
                while peer.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert silent.recv(1) == b"", "a silent peer was answered"
    silent.close()
    shaking.join(2 * PATIENCE_SECONDS)
    assert late == {"answer": b"", "other lives": True}, late
    websocket(secure)


def certificates(secure):
    second, third = make_pair(secure.directory, "second"), make_pair(secure.directory, "third")
    with secure.ws("kept", "room:kept") as kept:
        receive(kept, lambda m: m["type"] == "subscribed")
        assert secure.shown() == "served"
        secure.replace(*second)
        wait_until("the second certificate is shown", lambda: secure.shown() == "second", process=secure.node)
        # The third's certificate with the second's key: kept out, and said.
        secure.replace(third[0], second[1])
        said = "the certificate was not reloaded"
        wait_until(said, lambda: said in secure.log(), process=secure.node)
        assert secure.shown() == "second"
        secure.replace(*third)
        secure.node.send(signal.SIGHUP)
        wait_until("the third certificate is shown", lambda: secure.shown() == "third", process=secure.node)
        # The connection of the first certificate still hears.
        secure.publish("room:kept", "still here")
        receive(kept, lambda m: m.get("payload") == "still here")
