"""The application's side, as an application sees it: webhooks that a Python server verifies by itself, the stream with a
Redis client, revoked tokens, and what happens when receivers or nodes fail."""

import base64
import collections
import hashlib
import hmac
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

from harness import Cluster, call, wait_until

KEY = os.urandom(32)
SECRET = "whsec_" + base64.b64encode(KEY).decode()
EVENTS = ["channel_occupied", "channel_vacated", "presence_join", "presence_leave", "user_online", "user_offline",
          "connection_opened", "connection_closed"]
# A node is given up after 15 s, looked at once a second; its users have 5 s to come back. The machine may be slow.
DEATH_SECONDS = 60

NAMESPACES = """
[[namespaces]]
pattern = "notifications"
subscribe = ["self"]
[[namespaces]]
pattern = "user:{id}"
subscribe = ["self"]
history = { size = 100, age = "1h" }
[[namespaces]]
pattern = "presence"
subscribe = ["authenticated"]
[[namespaces]]
pattern = "presence:**"
subscribe = ["authenticated"]
presence = ["authenticated"]
[[namespaces]]
pattern = "asked:{id}"
subscribe = ["webhook"]
publish = ["webhook"]
history = { size = 100, age = "1h" }
[[namespaces]]
pattern = "busy"
subscribe = ["authenticated"]
publish = ["authenticated"]
publishes_per_second = 20
[[namespaces]]
pattern = "chat"
subscribe = ["authenticated"]
publish = ["authenticated"]
history = { size = 100, age = "1h" }
[[namespaces]]
pattern = "room:**"
subscribe = ["authenticated"]
publish = ["authenticated"]
history = { size = 100, age = "1h" }
"""


class Receiver(ThreadingHTTPServer):
    """The application: three addresses, answers that a fact may change, and everything that was received."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Condition()
        self.arrivals = collections.defaultdict(list)
        self.calls = collections.defaultdict(list)
        self.answers = {"/inbound": self.echo, "/authorize": lambda body: (200, {"allow": True, "ttl": 60}),
                        "/events": lambda body: (200, {})}
        self.wrong = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A node that is killed cuts its connections."""

    @staticmethod
    def echo(body):
        return 200, {"echo": body["payload"]}

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def toml(self):
        hooks = "".join(f'[{section}.webhook]\nurl = "{self.url(path)}"\nsecret = "{SECRET}"\n{more}\n'
                        for section, path, more in [("inbound", "/inbound", 'timeout = "5s"'), ("authorize", "/authorize", ""),
                                                    ("events", "/events", 'timeout = "5s"')])
        switches = "".join(f"{name} = true\n" for name in EVENTS)
        return f"[events]\nattempts = 3\n{switches}{hooks}{NAMESPACES}"

    def events(self):
        """Taken ones, as the application has them: each id once, in the order of the first time it was taken."""
        with self.lock:
            return list({c["id"]: c["body"] for c in self.calls["/events"] if c["status"] == 200}.values())

    def wait(self, what, condition, seconds=60, hint=lambda: ""):
        with self.lock:
            if not self.lock.wait_for(condition, seconds):
                raise AssertionError(f"{what}: not within {seconds} s; {hint()} events {self.lines()[-40:]}")

    def wait_line(self, line, seconds=60):
        self.wait(line, lambda: line in self.lines(), seconds)

    def lines(self):
        """Events as `type subject`, messages left out."""
        return [f"{e['type']} {subject(e['data'])}" for e in self.events() if e["kind"] == "event"]


def subject(data):
    return data.get("user_id") or (data.get("user") or {}).get("id") or data.get("channel")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        ident, at = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        mac = hmac.new(KEY, f"{ident}.{at}.".encode() + raw, hashlib.sha256).digest()
        signature = "v1," + base64.b64encode(mac).decode()
        server = self.server
        if signature not in self.headers["webhook-signature"].split() or abs(time.time() - int(at)) > 60:
            server.wrong.append(dict(self.headers))
            return self.answer(401, {})
        body = json.loads(raw)
        with server.lock:
            server.arrivals[self.path].append({"id": ident, "body": body})
            server.lock.notify_all()
        status, answer = server.answers[self.path](body)
        with server.lock:
            server.calls[self.path].append({"id": ident, "body": body, "status": status, "at": time.monotonic()})
            server.lock.notify_all()
        self.answer(status, answer)

    def answer(self, status, body):
        raw = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)
        except OSError:  # it did not wait
            pass

    def log_message(self, *_):
        pass


def facts(check, binary):
    receiver = Receiver()
    with Cluster(binary, extra_toml=receiver.toml()) as cluster:
        calls(check, cluster, receiver)
        permission(check, cluster, receiver)
        revocation(check, cluster)
        limits(check, cluster)
        events(check, cluster, receiver)
    check("every signature was good", lambda: equal(receiver.wrong, []))
    with Cluster(binary, nodes=2, extra_toml='[inbound]\ntypes = ["order"]\n') as cluster:
        stream(check, cluster)
    receiver.shutdown()


def equal(one, other):
    assert one == other, f"{one!r} is not {other!r}"


def calls(check, cluster, receiver):
    a, b, _ = cluster.nodes

    def answered():
        with cluster.ws(a, "ann") as ann:
            ack = ann.request(type="cart:add", payload={"n": [1, 2.5, "ü"]}, id="c1")
            equal(ack["payload"]["data"], {"echo": {"n": [1, 2.5, "ü"]}})
            sent = receiver.calls["/inbound"][-1]["body"]
            equal((sent["type"], sent["user_id"], sent["id"]), ("cart:add", "ann", "c1"))

    def slow():
        release = threading.Event()
        receiver.answers["/inbound"] = lambda body: (release.wait(60), (200, {"late": True}))[1]
        try:
            with cluster.ws(a, "ann", "chat") as ann:
                ann.send(type="slow", ack_id="s1")
                receiver_has_none = time.monotonic()
                ann.send(type="ping")
                ann.wait_type("pong")
                cluster.publish(b, "chat", "meanwhile")
                ann.wait_payload("meanwhile")
                took = time.monotonic() - receiver_has_none
                error = ann.wait(lambda m: m.get("ack_id") == "s1", "the answer to the slow call")
                equal((error["type"], error["payload"]["code"]), ("error", "UNAVAILABLE"))
                assert took < time.monotonic() - receiver_has_none, "the rest waited for the call"
        finally:
            release.set()
            receiver.answers["/inbound"] = receiver.echo

    def failing():
        receiver.answers["/inbound"] = lambda body: (500, {"allow": True})
        try:
            with cluster.ws(b, "ann") as ann:
                equal(ann.request(type="x")["payload"]["code"], "UNAVAILABLE")
                receiver.answers["/inbound"] = receiver.echo
                equal(ann.request(type="x", payload=7)["payload"]["data"], {"echo": 7})
        finally:
            receiver.answers["/inbound"] = receiver.echo

    def by_poll():
        token = cluster.token("pol")
        answer = call(a, "POST", "/poll", {"user_id": "pol", "timeout": 0, "messages": [
            {"type": "cart:add", "ack_id": "p", "payload": "x"}]}, {"Authorization": f"Bearer {token}"}, "/api/v1/realtime")
        equal(answer.json["replies"][0]["payload"]["data"], {"echo": "x"})

    check("a typed message without a channel is answered by the application, signed", answered)
    check("a slow application stalls nothing else of the connection, and its call ends UNAVAILABLE", slow)
    check("an application that errs is UNAVAILABLE, and the connection lives on", failing)
    check("a poll's call is answered in its replies", by_poll)


def permission(check, cluster, receiver):
    a, b, c = cluster.nodes

    def asked_everywhere():
        receiver.answers["/authorize"] = lambda body: (200, {"allow": body["user_id"] == "may", "ttl": 60})
        yes, no = (cluster.token(user) for user in ("may", "maynot"))
        with cluster.ws(a, "may", "asked:1") as may, cluster.sse(b, "may", "asked:1") as too:
            equal(may.request(type="message", channel="asked:1", payload="hi")["type"], "ack")
            too.wait_payload("hi")
            equal(may.times("hi") or may.wait_payload("hi")["payload"] == "hi", 1)
        with cluster.ws(c, "maynot") as maynot:
            for request in ({"type": "subscribe", "channel": "asked:1"},
                            {"type": "message", "channel": "asked:1", "payload": "no"}):
                equal(maynot.request(**request)["payload"]["code"], "FORBIDDEN")
        for token, status in ((yes, 200), (no, 403)):
            body = {"channel": "asked:1", "type": "message", "payload": "rest"}
            equal(call(a, "POST", "/publish", body, {"Authorization": f"Bearer {token}"}).status, status)
            user = "may" if status == 200 else "maynot"
            poll = call(b, "GET", f"/poll?user_id={user}&timeout=0&channels=asked:1", None,
                        {"Authorization": f"Bearer {token}"}, "/api/v1/realtime")
            equal([e["code"] for e in poll.json.get("errors", [])], [] if status == 200 else ["FORBIDDEN"])
        sent = receiver.calls["/authorize"][0]["body"]
        equal(sorted(sent), ["action", "channel", "claims", "connection_id", "user_id"])

    def kept_and_over():
        answers = collections.deque([(200, {"allow": True, "ttl": 2})])
        receiver.answers["/authorize"] = lambda body: answers.popleft() if answers else (200, {"allow": False})
        before = len(receiver.calls["/authorize"])
        with cluster.ws(a, "tim", "asked:9") as tim:
            began = time.monotonic()
            equal(tim.request(type="subscribe", channel="asked:9")["type"], "ack")
            equal(len(receiver.calls["/authorize"]) - before, 1)
            error = tim.wait_type("error")
            equal((error["channel"], error["payload"]["code"]), ("asked:9", "FORBIDDEN"))
            assert time.monotonic() - began > 1.5, "it ended before its time"
            cluster.publish(b, "asked:9", "unheard")
            tim.request(type="subscribe", channel="chat")
            equal(tim.times("unheard"), 0)

    def unreachable():
        receiver.answers["/authorize"] = lambda body: (503, {"allow": True})
        with cluster.ws(b, "una") as una:
            equal(una.request(type="subscribe", channel="asked:5")["payload"]["code"], "FORBIDDEN")
        receiver.answers["/authorize"] = lambda body: (200, {"allow": True, "ttl": 60})

    check("the application is asked on WebSocket, SSE, poll and REST, and obeyed", asked_everywhere)
    check("an answer is kept for its ttl, then asked again; a no ends the subscription with FORBIDDEN", kept_and_over)
    check("an application that cannot be asked says no", unreachable)


def revocation(check, cluster):
    nodes = cluster.nodes

    def by_id():
        token = cluster.token("rev", jti="stolen-1")
        from harness import WsListener
        held = [WsListener(node, token).wait_live(["notifications"]) for node in nodes]
        other = cluster.ws(nodes[1], "rev")
        began = time.monotonic()
        answer = cluster.post(nodes[0], "/tokens/revoke", {"jti": "stolen-1"})
        equal(answer.status, 200)
        for listener in held:
            told = listener.wait_type("disconnect")
            equal(told["payload"]["code"], 4401)
            listener.wait_closed()
            equal(listener.socket.protocol.close_code, 4401)
        print(f"     ended on three nodes {time.monotonic() - began:.2f} s after it was revoked", flush=True)
        for node in nodes:
            refused = call(node, "GET", "/notifications", None, {"Authorization": f"Bearer {token}"})
            equal((refused.status, refused.code), (401, "INVALID_TOKEN"))
        other.send(type="ping")
        other.wait_type("pong")
        other.close()

    def a_node_that_was_not_there():
        nodes[2].kill()
        old = cluster.keys.token("usr", iat=int(time.time()) - 100)
        equal(cluster.post(nodes[0], "/tokens/revoke", {"user_id": "usr"}).status, 200)
        nodes[2].start()
        wait_until("ready", nodes[2].ready, process=nodes[2])
        fresh = cluster.keys.token("usr", iat=int(time.time()) + 5)
        for node in nodes:
            equal(call(node, "GET", "/notifications", None, {"Authorization": f"Bearer {old}"}).code, "INVALID_TOKEN")
            equal(call(node, "GET", "/notifications", None, {"Authorization": f"Bearer {fresh}"}).status, 200)

    check("a token revoked by id ends on three nodes and is refused; another of the user is not", by_id)
    check("a user's older tokens are refused, also by a node that was down; newer ones are not", a_node_that_was_not_there)


def limits(check, cluster):
    a = cluster.nodes[0]

    def publish_rate():
        message = {"channel": "busy", "type": "message"}
        answers = [cluster.post(a, "/publish", message)]
        equal(answers[0].status, 200)
        # A batch takes what is left at one moment; a slow machine may be slower than the limit from one request to the next.
        while answers[-1].status == 200 and len(answers) < 100:
            cluster.post(a, "/publish/batch", {"messages": [message] * 60})
            answers.append(cluster.post(a, "/publish", message))
        refused = answers[-1:]
        equal(refused[0].status, 429)
        equal(refused[0].code, "RATE_LIMITED")
        assert refused[0].json["details"]["retry_after_ms"] > 0, refused[0]
        equal(refused[0].headers["X-RateLimit-Limit"], "20")
        equal(answers[0].headers["X-RateLimit-Remaining"], "19")
        # The limit is the channel's: another one is free.
        equal(cluster.post(a, "/publish", {"channel": "chat", "type": "message"}).status, 200)

    def abuse():
        with cluster.ws(a, "flood") as flood:
            began, ended = time.monotonic(), False
            while not ended and time.monotonic() - began < 30:
                try:
                    for _ in range(50):
                        flood.socket.send('{"type":"ping"}')
                except Exception:  # it was cut off
                    ended = True
                time.sleep(0.05)
            assert time.monotonic() - began >= 3, "sooner than 3 s"
            equal(flood.wait_type("disconnect")["payload"]["code"], 4429)
            flood.wait_closed()
            equal(flood.socket.protocol.close_code, 4429)

    check("publishes to a channel over its rate are refused with the three headers", publish_rate)
    check("a client that stays over its rate for 3 s is told and closed with 4429", abuse)


def events(check, cluster, receiver):
    def consecutive():
        numbers = [event["sequence"] for event in receiver.events() if event["kind"] == "event"]
        equal(numbers, list(range(1, len(numbers) + 1)))

    def replay():
        """Every beginning has its end, and they alternate."""
        state = {}
        pairs = {"channel_occupied": "channel_vacated", "presence_join": "presence_leave", "user_online": "user_offline",
                 "connection_opened": "connection_closed"}
        ends = {end: begin for begin, end in pairs.items()}
        for event in receiver.events():
            kind, data = event["type"], event["data"]
            about = data.get("connection_id") or (data.get("channel"), subject(data))
            begins = kind in pairs
            key = (kind if begins else ends[kind], about)
            assert state.get(key, False) != begins, f"{kind} {about} twice"
            state[key] = begins
        return [key for key, on in state.items() if on]

    def told_over_the_cluster():
        with cluster.ws(cluster.nodes[0], "eve", "room:ev") as one, cluster.ws(cluster.nodes[1], "eve", "room:ev") as two:
            for listener in (one, two):
                equal(listener.request(type="presence:join", channel="presence:ev")["type"], "ack")
            for line in ("user_online eve", "channel_occupied room:ev", "presence_join eve"):
                receiver.wait_line(line)
        for line in ("presence_leave eve", "channel_vacated room:ev", "user_offline eve"):
            receiver.wait_line(line)
        receiver.wait("both closed", lambda: receiver.lines().count("connection_closed eve") == 2)
        lines = receiver.lines()
        for line in ("user_online eve", "channel_occupied room:ev", "presence_join eve", "presence_leave eve",
                     "channel_vacated room:ev", "user_offline eve"):
            equal((line, lines.count(line)), (line, 1))
        equal(lines.count("connection_opened eve"), 2)

    def sender():
        """The node that holds the lease; connection ids begin with their node's."""
        store = redis.Redis(port=cluster.redis.port, decode_responses=True, protocol=2)
        holder = store.get("carillon:lease:{carillon:inbound}:carillon-webhooks")
        for node in cluster.nodes:
            with cluster.ws(node, "who", "chat") as who:
                if who.wait_type("connect")["payload"]["connection_id"].startswith(holder + "-"):
                    return node
        raise AssertionError(f"{holder} is none of the nodes")

    def killed_while_sending():
        first, over = sender(), threading.Event()
        others = [node for node in cluster.nodes if node is not first]
        with cluster.ws(others[0], "tom", "room:dies") as tom:
            receiver.wait_line("connection_opened tom")
            # It dies while the receiver thinks: what it had read is left behind.
            receiver.answers["/events"] = lambda body: (over.wait(10), (500, {}))[1]
            before = len(receiver.arrivals["/events"])
            dying = cluster.ws(first, "sue", "room:dies")
            dying.request(type="presence:join", channel="presence:dies")
            receiver.wait("an attempt", lambda: len(receiver.arrivals["/events"]) > before)
            first.kill()
            receiver.answers["/events"] = lambda body: (200, {})
            over.set()
            for line in ("connection_closed sue", "presence_leave sue", "user_offline sue"):
                receiver.wait_line(line, DEATH_SECONDS)
            assert "channel_vacated room:dies" not in receiver.lines(), "tom listens"
            tom.send(type="ping")
            tom.wait_type("pong")
        receiver.wait_line("channel_vacated room:dies")
        receiver.wait_line("user_offline tom")
        first.start()
        wait_until("ready", first.ready, process=first)
        lines = receiver.lines()
        for line in ("connection_opened sue", "connection_closed sue", "presence_join sue", "presence_leave sue",
                     "user_online sue", "user_offline sue", "channel_occupied room:dies", "channel_vacated room:dies"):
            equal((line, lines.count(line)), (line, 1))
        closed = next(e for e in receiver.events() if e["type"] == "connection_closed" and subject(e["data"]) == "sue")
        equal(closed["data"]["reason"], "node lost")

    def repeated_under_one_id():
        by_number = collections.defaultdict(set)
        for attempt in receiver.arrivals["/events"]:
            by_number[attempt["body"]["sequence"]].add(attempt["id"])
        equal([number for number, ids in by_number.items() if len(ids) != 1], [])
        numbers = [attempt["body"]["sequence"] for attempt in receiver.arrivals["/events"]]
        assert all(later >= earlier for earlier, later in zip(numbers, numbers[1:])), numbers

    def dead_letters():
        store = redis.Redis(port=cluster.redis.port, decode_responses=True, protocol=2)
        receiver.answers["/events"] = lambda body: (
            (500, {}) if body["type"] == "connection_opened" and subject(body["data"]) == "doa" else (200, {}))
        with cluster.ws(cluster.nodes[1], "doa"):
            receiver.wait_line("user_online doa")
        receiver.wait_line("connection_closed doa")
        [(_, letter)] = store.xrange("carillon:dead:{carillon:inbound}")
        equal((letter["type"], json.loads(letter["data"])["data"]["user_id"]), ("connection_opened", "doa"))
        assert "500" in letter["reason"], letter
        tried = [c for c in receiver.calls["/events"] if c["id"] == "evt_" + letter["id"]]
        equal(len(tried), 3)

    check("events of three nodes are told once each, whichever node sees the beginning and the end", told_over_the_cluster)
    check("kill -9 of the sending node: the survivors end what it held once each and send on", killed_while_sending)
    check("numbers follow each other without a hole", consecutive)
    check("a repetition has the id of the first attempt, and the order is kept", repeated_under_one_id)
    check("beginnings and ends alternate for everything",
          lambda: receiver.wait("all is over", lambda: replay() == [], hint=replay))
    check("after the last attempt an entry is a dead letter and the next one follows", dead_letters)


def stream(check, cluster):
    a, b = cluster.nodes
    store = redis.Redis(port=cluster.redis.port, decode_responses=True, protocol=2)
    name = "carillon:inbound"

    def queued():
        with cluster.ws(a, "ann") as ann:
            data = ann.request(type="cart:add", payload={"sku": "a"}, id="c1")["payload"]["data"]
            equal(data["status"], "queued")
            equal(ann.request(type="order", channel="chat", payload=1)["type"], "ack")
            equal(ann.request(type="message", channel="chat", payload=2)["type"], "ack")
        store.xgroup_create(name, "shop", id="0")
        [(_, entries)] = store.xreadgroup("shop", "one", {name: ">"}, count=10)
        equal([fields["type"] for _, fields in entries], ["cart:add", "order"])
        first = json.loads(entries[0][1]["data"])
        equal((entries[0][0], first["user_id"], first["payload"], first["id"]), (data["id"], "ann", {"sku": "a"}, "c1"))
        equal(json.loads(entries[1][1]["data"])["channel"], "chat")
        equal(store.xack(name, "shop", entries[0][0]), 1)
        # The consumer dies; another takes over what it left.
        taken = store.xautoclaim(name, "shop", "two", min_idle_time=0)[1]
        equal([ident for ident, _ in taken], [entries[1][0]])

    def bounded():
        with cluster.ws(b, "ben") as ben:
            ben.request(type="x")
        before = store.xlen(name)
        pipe = store.pipeline(transaction=False)
        for _ in range(101_000):
            pipe.xadd(name, {"type": "filler", "data": "{}"})
        pipe.execute()
        with cluster.ws(a, "ann") as ann:
            equal(ann.request(type="x")["payload"]["data"]["status"], "queued")
        assert store.xlen(name) < 101_000, (before, store.xlen(name))

    check("without a webhook a call is queued on the stream, where a consumer group reads and takes over", queued)
    check("the stream is trimmed", bounded)
