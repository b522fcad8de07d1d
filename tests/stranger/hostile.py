"""Peers that hold a socket and say little, and a process without file descriptors left."""

import json
import socket
import threading
import time
import urllib.parse

from websockets.sync.client import connect

from harness import PATIENCE_SECONDS, call, wait_until
from reload import Alone

# Documented bounds, and what a busy machine may add.
SILENCE_SECONDS, SLACK_SECONDS = 10, 12
DESCRIPTORS = 160


def facts(check, binary):
    with Alone(binary) as alone:
        check("bodies that stop coming are told 408 and closed; without a credential at once", slow_bodies, alone)
    with Alone(binary, "[limits]\nconnections = 0\n") as alone:
        check("without file descriptors the node answers 503, keeps whom it has, and recovers", exhausted, alone)


def slow_bodies(alone):
    node, key = alone.node, alone.keys.api_key
    token = alone.keys.token("sly")
    publish, poll = "POST /api/realtime/publish", "POST /api/v1/realtime/poll"
    asked = [
        ("nothing of a body", publish, f"X-API-Key: {key}", b"", 408),
        ("half a body", publish, f"X-API-Key: {key}", b'{"channel":"chat"', 408),
        ("half of a user's body", publish, f"Authorization: Bearer {token}", b'{"channel"', 408),
        ("half a poll", poll, f"Authorization: Bearer {token}", b'{"user_id"', 408),
        ("no credential", publish, "X-None: 1", b'{"channel"', 401),
        ("a bad key", publish, "X-API-Key: wrong", b"", 401),
    ]
    found = {}

    def ask(what, line, header, part, expected):
        with socket.create_connection(("127.0.0.1", node.port), PATIENCE_SECONDS) as peer:
            peer.settimeout(60)
            began = time.monotonic()
            peer.sendall(f"{line} HTTP/1.1\r\nHost: x\r\n{header}\r\nContent-Type: application/json\r\n"
                         "Content-Length: 900\r\n\r\n".encode() + part)
            answer = b""
            while more := peer.recv(4096):
                answer += more
            found[what] = (int(answer.split(b" ", 2)[1]) if answer else None, time.monotonic() - began, answer)

    threads = [threading.Thread(target=ask, args=row) for row in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    for what, _, _, _, expected in asked:
        status, seconds, answer = found[what]
        assert status == expected, (what, status, answer)
        least, most = (SILENCE_SECONDS - 1, SILENCE_SECONDS + SLACK_SECONDS) if expected == 408 else (0, SILENCE_SECONDS)
        assert least <= seconds < most, (what, seconds)
        if expected == 408:
            assert b'"REQUEST_TIMEOUT"' in answer, answer
    answer = call(node, "POST", "/publish", {"channel": "chat", "type": "message", "payload": 1}, {"X-API-Key": key})
    assert answer.status == 200, answer


def exhausted(alone):
    node = alone.node
    # Started anew with few descriptors; the shell's own limit is not touched.
    node.kill()
    node.argv = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *node.argv]
    node.start()
    wait_until("ready", node.ready, process=node)
    query = urllib.parse.urlencode({"token": alone.keys.token("kept"), "channel": "chat"})
    with connect(f"{node.ws}/ws?{query}", open_timeout=PATIENCE_SECONDS, ping_interval=None) as kept:
        crowd, told = [], 0
        try:
            for _ in range(2 * DESCRIPTORS):
                crowd.append(socket.create_connection(("127.0.0.1", node.port), PATIENCE_SECONDS))
            # Who is refused is told without having asked; who was taken is silent, and closed after ten seconds.
            end = time.monotonic() + PATIENCE_SECONDS
            for peer in crowd[-20:]:
                peer.settimeout(max(0.1, end - time.monotonic()))
                answer = b""
                while more := peer.recv(4096):
                    answer += more
                told += answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 5" in answer.lower()
            assert told > 0, "nobody was told"
            assert node.alive()
            kept.send(json.dumps({"type": "message", "channel": "chat", "payload": "still here", "ack_id": "1"}))
            heard = {"message": False, "ack": False}
            while not all(heard.values()):
                message = json.loads(kept.recv(PATIENCE_SECONDS))
                heard[message["type"]] = True
        finally:
            for peer in crowd:
                peer.close()

        def served():
            try:
                return call(node, "GET", "/stats", None, {"X-API-Key": alone.keys.api_key}).status == 200
            except OSError:
                return False
        wait_until("new clients are served again", served, process=node)
