"""A reader that stops reading: the others hear on, memory stays bounded, and once it reads again it gets everything, or hears
why it was cut off where no history could give it what it missed."""

import base64
import json
import os
import socket
import struct
import time
import urllib.parse
import urllib.request

from harness import PATIENCE_SECONDS, Cluster

MESSAGES = 80
BODY = "x" * 50_000
# Longer than a connection that is closed waits for a peer that reads.
STALL_SECONDS = 6
# More than two kernels may hold between them.
CUT_MESSAGES = 2_000


def facts(check, cluster):
    a, b, _ = cluster.nodes

    def cut_reader_hears_why_over_redis():
        stalled_reader_hears_4410(cluster, a, b)

    def cut_reader_hears_why_embedded():
        with Cluster(cluster.binary, embedded=True) as alone:
            stalled_reader_hears_4410(alone, alone.nodes[0], alone.nodes[0])

    def stalled_reader_is_refilled_and_others_still_receive():
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            stalled.settimeout(PATIENCE_SECONDS)
            stalled.connect(("127.0.0.1", a.port))
            rest = upgrade(stalled, cluster.token("slow"), "room:slow")
            with cluster.ws(a, "quick", "room:slow") as quick:
                for n in range(MESSAGES):
                    cluster.publish(b, "room:slow", {"n": n, "body": BODY})
                # Four megabytes wait for the stalled one, sixteen times its queue; the other has them all.
                quick.wait(lambda m: (m.get("payload") or {}).get("n") == MESSAGES - 1, "the last message")
            heard = [m["payload"]["n"] for m in read(stalled, rest) if m["type"] == "message"]
            assert heard == list(range(MESSAGES)), heard

    check("a stalled reader is refilled from history, in order, once; the others hear on",
          stalled_reader_is_refilled_and_others_still_receive)
    check("a reader that stalled on a channel without history and reads on hears disconnect, then 4410",
          cut_reader_hears_why_over_redis)
    check("the same on one node with the embedded broker", cut_reader_hears_why_embedded)


def stalled_reader_hears_4410(cluster, node, publisher):
    channel = "presence:slow"
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        stalled.settimeout(PATIENCE_SECONDS)
        stalled.connect(("127.0.0.1", node.port))
        rest = upgrade(stalled, cluster.token("cut"), channel)
        before = slow_consumers(node)
        for n in range(CUT_MESSAGES):
            cluster.publish(publisher, channel, {"n": n, "body": BODY})
            if slow_consumers(node) > before:
                break
        time.sleep(STALL_SECONDS)
        frames = list(frames_to_end(stalled, rest))
    messages = [json.loads(payload) for opcode, payload in frames if opcode == 1]
    heard = [m["payload"]["n"] for m in messages if m["type"] == "message"]
    assert heard == list(range(len(heard))) and heard, f"what was queued came in order: {heard}"
    told = messages[-1]
    assert told["type"] == "disconnect" and told["payload"]["code"] == 4410 and told["payload"]["reconnect"] is True, told
    opcode, payload = frames[-1]
    assert opcode == 8 and struct.unpack(">H", payload[:2])[0] == 4410, (opcode, payload[:50], len(frames))


def slow_consumers(node):
    with urllib.request.urlopen(f"http://127.0.0.1:{node.operator_port}/metrics", timeout=PATIENCE_SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if "slow_consumers_total" in line and not line.startswith("#"))


def frames_to_end(connection, buffer):
    """Opcode and payload of every frame until the server ends the connection."""
    while True:
        while (frame := take(buffer)) is not None:
            opcode, payload, buffer = frame
            yield opcode, payload
        more = connection.recv(65536)
        if not more:
            return
        buffer += more


def upgrade(connection, token, channel):
    """Opens a WebSocket by hand; what came behind the answer's head."""
    query = urllib.parse.urlencode({"token": token, "channel": channel})
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall((f"GET /ws?{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096)
    head, rest = answer.split(b"\r\n\r\n", 1)
    assert b" 101 " in head, head
    return rest


def read(connection, buffer):
    """Messages up to the last one, out of unmasked frames."""
    while True:
        while True:
            frame = take(buffer)
            if frame is None:
                break
            opcode, payload, buffer = frame
            if opcode == 1:
                message = json.loads(payload)
                yield message
                if (message.get("payload") or {}).get("n") == MESSAGES - 1:
                    return
        more = connection.recv(65536)
        assert more, "closed before the last message"
        buffer += more


def take(buffer):
    if len(buffer) < 2:
        return None
    length, at = buffer[1] & 127, 2
    if length == 126:
        if len(buffer) < 4:
            return None
        length, at = struct.unpack(">H", buffer[2:4])[0], 4
    elif length == 127:
        if len(buffer) < 10:
            return None
        length, at = struct.unpack(">Q", buffer[2:10])[0], 10
    if len(buffer) < at + length:
        return None
    return buffer[0] & 15, buffer[at:at + length], buffer[at + length:]
