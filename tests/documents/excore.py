"""The ExCore document, from top to bottom, against running nodes. Where `spec/` rules otherwise, the ruling is named."""

import json
import urllib.request

from stage import QUICK, WsListener, call, closed_with, handshake, is_now_ms, silence, wait_until


def facts(check, stage):
    a, b, c = stage.a, stage.b, stage.c

    def events(node, user, path="/api/events", **query):
        return stage.stream(node, path, user, **query)

    # --- Event streams
    def stream_opening():
        with events(a, stage.name(), channel="dashboard") as one:
            assert one.status == 200, one.status
            assert one.headers["Content-Type"].split(";")[0] == "text/event-stream", one.headers
            assert "no-cache" in one.headers["Cache-Control"], one.headers
            assert (one.headers["Connection"] or "keep-alive").lower() == "keep-alive", one.headers
            opening = one.wait(lambda e: True, "retry")
            assert opening["retry"] and int(opening["retry"]) > 0, opening
            connected = one.event("connected")
            assert connected["json"]["message"] == "Connected to event stream", "R29"
            assert connected["json"]["connection_id"], connected
            assert set(connected["json"]) <= {"message", "connection_id", "channels"}, connected

    def unauthenticated():
        for path in ("/api/events", "/events"):
            answer = call(a, "GET", path, base="")
            assert answer.status == 401 and answer.code == "MISSING_TOKEN", answer

    def to_user():
        user = stage.name()
        with events(a, user) as one, events(b, user, "/events") as two, events(c, stage.name()) as other:
            for listener in (one, two, other):
                listener.event("connected")
            payload = {"title": "New Message", "body": "from Alice"}
            stage.to_user(c, user, "notification", payload)
            for listener in (one, two):
                heard = listener.event("notification")
                assert heard["json"] == payload and heard["id"], heard
            stage.post(a, "/broadcast", {"type": "end", "payload": {}})
            silence(other, lambda e: e["event"] == "end", lambda e: e["event"] == "notification")

    def to_channel():
        with events(a, stage.name(), channel="dashboard") as one, events(b, stage.name()) as other:
            one.event("subscribed"), other.event("connected")
            metrics = {"activeUsers": 1542, "requestsPerSecond": 230}
            stage.publish(c, "dashboard", metrics, type="metric-update")
            heard = one.event("metric-update")
            assert heard["json"] == metrics, heard
            stage.post(a, "/broadcast", {"type": "end", "payload": {}})
            silence(other, lambda e: e["event"] == "end", lambda e: e["event"] == "metric-update")

    def to_all():
        with events(a, stage.name()) as one, events(b, stage.name()) as two, \
                stage.ws(c, stage.name(), path="/") as three:
            one.event("connected"), two.event("connected"), three.wait_type("connected")
            payload = {"message": "maintenance in 10 minutes"}
            answer = stage.post(b, "/broadcast", {"type": "system-announcement", "payload": payload})
            assert answer.status == 200 and answer.json["recipients"] >= 3, answer
            assert one.event("system-announcement")["json"] == payload
            assert two.event("system-announcement")["json"] == payload
            assert three.wait_type("system-announcement")["payload"] == payload

    def exact_bytes():
        user = stage.name()
        with events(a, user) as one:
            one.event("connected")
            # The payload's bytes are the publisher's.
            body = b'{"type":"test","payload":{"message":"Hello"}}'
            assert stage.post(b, f"/users/{user}/messages", body).status == 200
            heard = one.event("test")
            assert "event: test" in heard["lines"] and 'data: {"message":"Hello"}' in heard["lines"], heard["lines"]
            # A string payload stands as it is, each of its lines a `data:` line.
            stage.to_user(b, user, "plain", "two\nlines")
            heard = one.wait(lambda e: e["event"] == "plain", "plain")
            assert [line for line in heard["lines"] if line.startswith("data:")] == ["data: two", "data: lines"], heard

    def resumes():
        user, channel = stage.name(), f"room:{stage.name()}"
        with events(a, user, channel=[channel, "dashboard"]) as one:
            one.event("subscribed"), one.event("subscribed")
            stage.publish(b, channel, {"n": 0})
            cursor = one.wait(lambda e: e["event"] == "message", "message")["id"]
        for n in range(1, 4):
            stage.publish(b, channel, {"n": n})
        stage.publish(b, "dashboard", {"m": user}, type="metric-update")
        with events(c, user, channel=f"{channel},dashboard", headers={"Last-Event-ID": cursor}) as again:
            heard = []
            while len(heard) < 3 or not any(e["event"] == "metric-update" for e in again.heard):
                event = again.wait(lambda e: e["event"] in ("message", "metric-update"), "what was missed")
                heard += [json.loads(event["data"])["n"]] if event["event"] == "message" else []
            assert heard == [1, 2, 3], heard

    def resumes_from_a_welcome():
        # EventSource remembers the last id, whatever event carried it: the welcome's must not forget the channels that follow it.
        user, channel = stage.name(), f"room:{stage.name()}"
        with events(a, user, channel=channel) as one:
            one.event("subscribed")
            stage.publish(b, channel, {"n": 0})
            cursor = one.wait(lambda e: e["event"] == "message", "message")["id"]
        stage.publish(b, channel, {"n": 1})
        stage.to_user(c, user, "hint", {"n": 2})
        for node in (b, c, a):
            with events(node, user, channel=channel, headers={"Last-Event-ID": cursor}) as again:
                cursor = again.event("connected")["id"]
        with events(b, user, channel=channel, headers={"Last-Event-ID": cursor}) as again:
            stage.publish(c, channel, {"end": 1})
            again.wait(lambda e: e["data"] == '{"end":1}' or e["data"] == '{"end": 1}', "the end")
            again.wait(lambda e: e["event"] == "hint", "the user's own") if not [
                e for e in again.heard if e["event"] == "hint"] else None
            heard = [json.loads(e["data"]) for e in again.heard if e["event"] in ("message", "hint")]
            assert sorted(map(str, heard)) == sorted(map(str, [{"n": 1}, {"n": 2}, {"end": 1}])), heard

    def stream_errors():
        # R26: an event of its own name, for `error` would fire the stream's onerror.
        with events(a, stage.name(), channel="nowhere,admin-dashboard,dashboard") as one:
            codes = {one.event("carillon-error")["json"]["code"] for _ in range(2)}
            assert codes == {"CHANNEL_NOT_FOUND", "FORBIDDEN"}, codes
            one.event("subscribed")
            assert not [e for e in one.heard if e["event"] == "error"]

    def operators_end():
        user = stage.name()
        with events(a, user) as one:
            one.event("connected")
            answer = call(c, "DELETE", f"/users/{user}/connections", None, {"X-API-Key": stage.keys.api_key})
            assert answer.status == 200 and answer.json == {"disconnected": 1}, answer
            payload = one.event("disconnect")["json"]
            assert payload["code"] == 4403 and payload["reconnect"] is False, payload
            one.wait_closed()
        for node in (a, b, c):
            with events(node, user) as stopped:
                assert stopped.status == 204, "R26: an EventSource stops coming back, wherever it comes"

    def one_connection_ended():
        user = stage.name()
        with events(a, user) as one:
            ident = one.event("connected")["json"]["connection_id"]
            gone = call(b, "DELETE", f"/connections/{ident}", None, {"X-API-Key": stage.keys.api_key})
            assert gone.status == 204, gone
            one.event("disconnect"), one.wait_closed()
        for node in (a, b, c):
            with events(node, user) as stopped:
                assert stopped.status == 204, "R26, wherever it comes"

    check("an event stream opens with its headers, retry and the welcome", stream_opening)
    check("an event stream needs a token", unauthenticated)
    check("a message to a user reaches that user's streams", to_user)
    check("a message to a channel reaches who listens to it", to_channel)
    check("a broadcast reaches all, of both kinds", to_all)
    check("an event's bytes are as documented", exact_bytes)
    check("a stream that comes back with Last-Event-ID misses nothing, on any channel", resumes)
    check("a stream that goes away right after its welcome misses nothing either", resumes_from_a_welcome)
    check("refused channels are told; the others are heard", stream_errors)
    check("an operator's disconnect ends the stream, and its EventSource, on every node", operators_end)
    check("the same when one connection is ended", one_connection_ended)

    def stream_limit():
        user = stage.name()
        held = [events((a, b, c)[n % 3], user) if n % 2 else stage.ws((a, b, c)[n % 3], user, path="/")
                for n in range(10)]
        refused = call(b, "GET", f"/api/events?token={stage.token(user)}", base="")
        assert refused.status == 429 and refused.code == "MAX_CONNECTIONS", refused
        assert handshake(a, f"/?token={stage.token(user)}").code == "MAX_CONNECTIONS"
        for one in held:
            one.close()

        def again():
            with events(c, user) as one:
                return one.status == 200
        wait_until("a place is free again", again)

    check("ten connections a user, streams and WebSockets together", stream_limit)

    def heartbeats():
        with stage.other(QUICK) as quick:
            with quick.stream(quick.a, "/api/events", "ann") as one, \
                    quick.stream(quick.b, "/api/realtime/events", "ann") as uno:
                one.wait(lambda e: e["comment"] is not None, "a comment line")
                uno.wait(lambda e: e["event"] == "ping", "a ping event")

    check("streams are kept alive by comment lines, in the uno profile by ping events", heartbeats)

    # --- WebSocket
    def welcome():
        with stage.ws(a, stage.name(), "general", path="/") as one:
            first = one.wait(lambda m: True, "the first message")
            assert first["type"] == "connected", first
            assert first["payload"]["message"] == "Connected to WebSocket server", "R29"
            assert first["payload"]["connection_id"], first
            one.wait(lambda m: m["type"] == "subscribed" and m["channel"] == "general", "the query's channel")

    def chat():
        user = stage.name()
        with stage.ws(a, user, "general", path="/") as one, stage.ws(b, stage.name(), "general", path="/") as two:
            one.send(type="chat:send", payload={"text": "hi " + user, "channel": "general", "userId": "forged"})
            for listener in (one, two):
                heard = listener.wait(lambda m: m["type"] == "chat:message" and m["payload"]["text"] == "hi " + user,
                                      "chat:message")
                assert set(heard["payload"]) == {"userId", "text", "timestamp"}, heard
                assert heard["payload"]["userId"] == heard["user_id"] == user and heard["channel"] == "general", heard
                is_now_ms(heard["payload"]["timestamp"])
            for kind, is_typing in (("typing:start", True), ("typing:stop", False)):
                one.send(type=kind, payload={"channel": "general"})
                heard = two.wait_type("typing:indicator")
                assert heard["payload"] == {"userId": user, "isTyping": is_typing, "channel": "general"}, heard
            one.send(type="chat:send", payload={"text": "end", "channel": "general"})
            silence(one, lambda m: m["payload"].get("text") == "end", lambda m: m["type"] == "typing:indicator")
            # Naming another in a routed type changes nothing (R4).
            one.send(type="chat:message", channel="general", payload={"userId": "victim", "text": "forged"})
            heard = two.wait(lambda m: m["payload"].get("text") == "forged", "the forged one")
            assert heard["payload"]["userId"] == user, heard

    def routed_errors():
        with stage.ws(c, stage.name(), path="/") as one:
            for message, code in (({"type": "chat:send", "payload": {"text": "x"}}, "INVALID_MESSAGE"),
                                  ({"type": "chat:send", "payload": {"text": "x", "channel": "nowhere"}},
                                   "CHANNEL_NOT_FOUND"),
                                  ({"type": "chat:send", "payload": {"text": "x", "channel": "topic:x"}}, "FORBIDDEN"),
                                  ({"type": "typing:start", "payload": {}}, "INVALID_MESSAGE"),
                                  ({"payload": {}}, "INVALID_MESSAGE")):
                one.send(**message)
                error = one.wait_type("error")
                assert error["payload"]["code"] == code and error["payload"]["message"], (message, error)

    def user_notification():
        user = stage.name()
        with stage.ws(a, user, path="/") as one, stage.ws(c, user, path="/") as two:
            one.wait_type("connected"), two.wait_type("connected")
            stage.to_user(b, user, "notification", {"title": "New Message", "body": "You have a new message"})
            for listener in (one, two):
                heard = listener.wait_type("notification")
                assert heard["payload"] == {"title": "New Message", "body": "You have a new message"}, heard

    def message_size():
        channel = f"room:{stage.name()}"
        with stage.ws(a, stage.name(), path="/") as one, stage.ws(b, stage.name(), channel, path="/") as two:
            body = "x" * (1024 * 1024 - 200)
            ack = one.request(type="message", channel=channel, payload=body)
            assert ack["type"] == "ack", str(ack)[:300]
            assert len(two.wait_type("message")["payload"]) == len(body)
            one.socket.send("x" * (1024 * 1024 + 1))
            assert closed_with(one) == 1009
        assert stage.settings()["limits"]["max_message_size"].replace(" ", "") in ("1MiB", "1048576"), stage.settings()

    def binary():
        channel = f"room:{stage.name()}"
        with stage.ws(a, stage.name(), channel, path="/", codec="carillon.msgpack") as one, \
                stage.ws(b, stage.name(), channel, path="/", codec="carillon.msgpack") as two, \
                stage.ws(c, stage.name(), channel, path="/") as three:
            one.send(type="message", channel=channel, payload={"raw": b"\x00\xff\x10"})
            assert two.wait_type("message")["payload"] == {"raw": b"\x00\xff\x10"}
            assert three.wait_type("message")["payload"] == {"raw": "AP8Q"}, "R24: base64 for readers of JSON"

    check("a WebSocket at / greets and joins the query's channel", welcome)
    check("chat:send and typing:start are routed", chat)
    check("what cannot be routed is told", routed_errors)
    check("a message to a user reaches the user's sockets", user_notification)
    check("a mebibyte is the limit of a message", message_size)
    check("binary payloads travel in MessagePack", binary)

    # --- Domain events
    def domain_events():
        admin = stage.token(stage.name(), channels={"subscribe": ["admin-dashboard"]})
        with stage.stream(a, "/api/events", token=admin, channel="admin-dashboard") as one:
            one.event("subscribed")
            payload = {"userId": "u1", "email": "u@example.org", "timestamp": "2024-03-01T12:00:00Z"}
            stage.publish(b, "admin-dashboard", payload, type="user:registered")
            assert one.event("user:registered")["json"] == payload
        # A list for all kinds of use grants as well (channels.md 2).
        listed = WsListener(c, stage.token(stage.name(), channels=["admin-dash*", "admin-dashboard"]))
        with listed:
            assert listed.request(type="subscribe", channel="admin-dashboard")["type"] == "ack"
            error = listed.request(type="message", channel="admin-dashboard", payload=1)
            assert error["payload"]["code"] == "FORBIDDEN", error

    check("user:registered reaches admin-dashboard, for who is granted it", domain_events)

    # --- Production considerations
    def metadata_across_nodes():
        user = stage.name()
        with stage.ws(a, user, "general", path="/") as one:
            ident = one.wait_type("connected")["payload"]["connection_id"]
            for node in (a, b, c):
                shown = stage.get(node, f"/connections/{ident}")
                assert shown.status == 200 and shown.json["user_id"] == user, shown
                assert shown.json["profile"] == "excore" and "general" in shown.json["channels"], shown
            answer = stage.post(c, f"/connections/{ident}/messages", {"type": "only", "payload": 1})
            assert answer.json == {"delivered": True}, answer
            one.wait_type("only")

    def monitoring():
        def metric(node, name):
            with urllib.request.urlopen(f"http://127.0.0.1:{node.operator_port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                       if line.startswith(name) and line[len(name)] in " {")

        before = metric(a, "carillon_connections")
        with stage.ws(a, stage.name(), path="/"):
            wait_until("the count has grown", lambda: metric(a, "carillon_connections") >= before + 1)
        stats = stage.get(b, "/stats").json
        assert len(stats["nodes"]) == len({node.name for node in stage.nodes}), stats
        for node in stats["nodes"]:
            assert {"id", "version", "connections"} <= set(node), node

    def correlation_ids():
        answer = call(a, "GET", "/stats", None, {"X-API-Key": stage.keys.api_key, "X-Request-Id": "corr-7"})
        assert answer.headers["X-Request-Id"] == "corr-7", answer.headers

    def limits_of_a_connection():
        with stage.ws(b, stage.name(), path="/") as one:
            one.wait_type("connected")
            one.burst([{"type": "ping"}] * 130)
            refused = one.wait_type("error")
            assert refused["payload"]["code"] == "RATE_LIMITED", refused
            assert refused["payload"]["details"]["retry_after_ms"] > 0, refused

    check("connection metadata is known on every node", metadata_across_nodes)
    check("connections and nodes are counted", monitoring)
    check("correlation ids come back", correlation_ids)
    check("messages are limited a connection", limits_of_a_connection)
