"""What the contract says beside the four documents and no other test shows from outside: protocol.md, channels.md, http-api.md 5,
rulings R1–R32. `CONTRACT.md` lists sentence by sentence where each is shown."""

import http.client
import json
import signal
import subprocess
import time

from stage import (QUICK, RFC3339, UPGRADE, WsListener, call, closed_with, handshake, is_now, is_now_ms,
                   wait_until)


def facts(check, stage):
    a, b, c = stage.a, stage.b, stage.c
    key = {"X-API-Key": stage.keys.api_key}

    # --- protocol.md 1
    def profiles():
        for path in ("/ws", "/api/realtime/ws", "/"):
            for profile in ("social", "uno", "dnr", "excore"):
                with stage.ws(a, stage.name(), path=path, profile=profile) as one:
                    first = one.wait(lambda m: True, "the first message")
                    wanted = {"social": "connect", "uno": "connection", "dnr": "subscribed", "excore": "connected"}
                    assert first["type"] == wanted[profile], (path, profile, first)
                    if profile == "uno":
                        assert set(first) == {"type", "connection_id"}, first
                        assert one.wait_type("subscribed")["channel"] == "notifications", "R7"
                    one.send(type="ping")
                    pong = one.wait_type("pong")
                    (is_now_ms if profile == "dnr" else is_now)(pong["timestamp"])
        for path, default in (("/api/realtime/events", "connection"), ("/api/events", "connected"),
                              ("/events", "connected")):
            with stage.stream(b, path, stage.name()) as stream:
                assert stream.event(default)["json"]["connection_id"], path
        for profile, enveloped in (("social", True), ("dnr", True), ("uno", False), ("excore", False)):
            user = stage.name()
            with stage.stream(c, "/events", user, profile=profile, channel="news") as stream:
                stream.event("subscribed")
                stage.publish(a, "news", {"n": user}, type="item")
                heard = stream.wait(lambda e: e["event"] == "item" and user in e["data"], "item")
                data = json.loads(heard["data"])
                assert (data["payload"] == {"n": user}) if enveloped else data == {"n": user}, (profile, data)
        assert handshake(a, f"/ws?token={stage.token('x')}&profile=none").status == 400

    def lines():
        with stage.ws(a, stage.name(), codec="carillon.ndjson") as one:
            assert one.socket.subprotocol == "carillon.ndjson"
            one.socket.send('{"type":"ping","requestId":"1"}\n{"type":"ping","requestId":"2"}\n')
            for number in "12":
                one.wait(lambda m: m.get("requestId") == number, "a pong a line")
        with stage.ws(a, stage.name()) as one:
            one.socket.send('{"type":"ping"}\n{"type":"ping"}')
            assert one.wait_type("error")["payload"]["code"] == "INVALID_MESSAGE", "one message a frame elsewhere"

    def cookies():
        with stage.other('[auth]\ncookie = "session"\n[cors]\norigins = ["https://app.example"]\n') as other:
            token = other.token("cook")
            jar = {"Cookie": f"a=b; session={token}"}

            def upgrade(**headers):
                connection = http.client.HTTPConnection("127.0.0.1", other.a.port, timeout=60)
                connection.request("GET", "/ws", headers={**UPGRADE, **jar, **headers})
                answer = connection.getresponse()
                connection.close()
                return answer.status
            assert upgrade() == 101 and upgrade(Origin="https://app.example") == 101
            assert upgrade(Origin="https://evil.example") == 403, "R5: the Origin is checked"
            assert call(other.a, "GET", "/channels", None, jar).code == "MISSING_TOKEN", "R5: never REST"

    def tokens_stay_out_of_logs():
        token = stage.token(stage.name())
        with WsListener(a, token) as one:
            one.wait_type("connect")
        handshake(b, f"/ws?token={token[:-3]}")
        for node in {a.name: a, b.name: b}.values():
            with open(node.log_path, errors="replace") as log:
                text = log.read()
            assert token[-40:-4] not in text and stage.keys.api_key not in text, node.name

    check("every path and profile greets and tells the time in its way", profiles)
    check("one document a line where asked for, one a frame elsewhere", lines)
    check("a cookie opens transports from known origins, and never REST", cookies)
    check("no token and no key is in a log", tokens_stay_out_of_logs)

    # --- protocol.md 3
    def operators_routes():
        route = '[[routes]]\nfrom = "bid:place"\nto = "bid:placed"\n[routes.payload]\nuser = "$user_id"\n' \
                'amount = "$payload.amount"\n'
        with stage.other(route) as other, other.ws(other.a, "ann", "room:1") as one:
            one.send(type="bid:place", channel="room:1", payload={"amount": 5, "user": "forged"})
            heard = one.wait_type("bid:placed")
            assert heard["payload"] == {"user": "ann", "amount": 5}, heard

    def same_id_of_two_senders():
        channel = f"room:{stage.name()}"
        with stage.ws(a, stage.name(), channel) as one, stage.ws(b, stage.name(), channel) as two:
            first = one.request(type="message", channel=channel, id="same", payload="one")["payload"]["data"]
            again = one.request(type="message", channel=channel, id="same", payload="one")["payload"]["data"]
            other = two.request(type="message", channel=channel, id="same", payload="two")["payload"]["data"]
            assert again["offset"] == first["offset"] and again["duplicate"] is True, again
            assert other["offset"] == first["offset"] + 1 and other["duplicate"] is False, "R2"
            one.wait_payload("two")
            # Its own may have come before its ack.
            assert two.times("two") or two.wait_payload("two")

    def inbound():
        with stage.ws(a, stage.name()) as one:
            ack = one.request(type="order:place", payload={"n": 1})
            assert ack["type"] == "ack" and ack["payload"]["data"]["queued"] is True, ack
        if not stage.embedded:
            entries = subprocess.run(["redis-cli", "-p", str(stage.redis.port), "XREVRANGE", "carillon:inbound",
                                      "+", "-", "COUNT", "1"], text=True, capture_output=True, check=True).stdout
            assert "order:place" in entries, entries

    check("operators extend the table of routes", operators_routes)
    check("an id is a sender's own (R2)", same_id_of_two_senders)
    check("a call to the application is queued where no webhook is", inbound)

    # --- protocol.md 4 and 5
    def expiry():
        user = stage.name()
        token = stage.token(user, exp=int(time.time()) + 3)
        with WsListener(a, token) as one, WsListener(b, token) as two:
            one.wait_type("connect")
            assert two.request(type="auth", payload={"token": stage.token(user)})["type"] == "ack"
            payload = one.wait_type("disconnect")["payload"]
            assert payload["code"] == 4401 and payload["reconnect"] is True, payload
            assert closed_with(one) == 4401
            two.send(type="ping")
            two.wait_type("pong")

    def drain():
        with stage.other('[drain]\nperiod = "0s"\ngrace = "1s"\n') as other:
            with other.ws(other.a, "ann") as one, other.stream(other.a, "/events", "ben") as two:
                one.wait_type("connect"), two.event("connected")
                other.a.send(signal.SIGTERM)
                payload = one.wait_type("disconnect")["payload"]
                assert payload["code"] == 1012 and payload["reconnect"] is True, payload
                assert payload["retry_after_ms"] >= 0 and closed_with(one) == 1012, payload
                assert two.event("disconnect")["json"]["code"] == 1012
                assert other.a.child.wait(30) == 0

    def slow_without_history():
        import slow
        import socket
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            stalled.settimeout(60)
            stalled.connect(("127.0.0.1", a.port))
            rest = slow.upgrade(stalled, stage.token(stage.name()), "presence")
            with stage.ws(b, stage.name(), "presence") as quick:
                for n in range(120):
                    stage.publish(c, "presence", {"n": n, "body": "x" * 50_000}, type="bulk")
                    # Heard one by one: on a starved machine this reader would else be a slow one, too.
                    quick.wait(lambda m, n=n: m["type"] == "bulk" and m["payload"]["n"] == n, f"number {n}")
            # It reads again: what it missed cannot be had, so it is told to come back (channels.md 7).
            data = rest
            while chunk := stalled.recv(65536):
                data += chunk
            closes, at = [], data
            while (frame := slow.take(at)) is not None:
                opcode, payload, at = frame
                closes += [int.from_bytes(payload[:2], "big")] if opcode == 8 else []
            assert closes in ([4410], []), closes

    def pings():
        with stage.other(QUICK) as quick:
            import socket
            with socket.create_connection(("127.0.0.1", quick.a.port), 30) as raw:
                head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
                raw.sendall(f"GET /ws?token={quick.token('p')} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
                stream, seen = raw.makefile("rb"), 0
                while stream.readline().strip():
                    pass
                while seen < 2:
                    first, second = stream.read(2)
                    size = second & 127
                    if size == 126:
                        size = int.from_bytes(stream.read(2), "big")
                    stream.read(size)
                    seen += first & 15 == 9

    check("a token that expires ends its connection with 4401, unless it was replaced", expiry)
    check("a node that drains says so with 1012 and ends with 0", drain)
    check("a slow reader of a channel without history is closed, others hear on", slow_without_history)
    check("the server pings every interval", pings)

    # --- protocol.md 6
    def resync():
        channel = f"room:{stage.name()}"
        with stage.ws(a, stage.name(), channel) as one:
            stage.publish(b, channel, 0)
            last = one.wait_payload(0)
            assert call(c, "DELETE", f"/channels/{channel}/history", None, key).status in (200, 204)
            told = one.wait_type("resync")
            assert told["channel"] == channel and {"reason", "offset", "epoch"} <= set(told["payload"]), told
            assert told["payload"]["epoch"] != last["epoch"], "R17: a new epoch"
            stage.publish(b, channel, 1)
            assert one.wait_payload(1)["epoch"] == told["payload"]["epoch"]
            again = one.request(type="subscribe", channel=channel,
                                payload={"since": {key: last[key] for key in ("offset", "epoch", "tag")}})
            assert again["payload"]["data"]["recovered"] is False, again
            assert again["payload"]["data"]["reason"] == "epoch", again

    def cursor_of_a_stream_on_a_websocket():
        # R22: `since` in the query is such a cursor; authorisation is checked again.
        user, channel = stage.name(), f"room:{stage.name()}"
        with stage.stream(a, "/events", user, channel=channel) as one:
            one.event("subscribed")
            stage.publish(b, channel, 0)
            cursor = one.wait(lambda e: e["event"] == "message", "message")["id"]
        stage.publish(b, channel, 1), stage.to_user(a, user, "hint", "own")
        with stage.ws(c, user, since=cursor, channel=channel) as two:
            reply = two.wait(lambda m: m["type"] == "subscribed" and m["channel"] == channel, "subscribed")
            assert reply["payload"]["recovered"] is True, reply
            two.wait_payload(1)
            assert two.times("own") == 1 or two.wait_payload("own"), "the user's own stream goes on, too"
        with stage.ws(b, user, since="rubbish", channel=channel) as three:
            three.wait(lambda m: m["type"] == "resync" and m["channel"] == channel, "resync")
        with stage.ws(b, stage.name(), since=cursor, channel=f"{channel},user:{user}") as other:
            error = other.wait_type("error")
            assert error["payload"]["code"] == "FORBIDDEN" and error["channel"] == f"user:{user}", error

    def excluded_stay_excluded():
        channel, user = f"room:{stage.name()}", stage.name()
        first = stage.publish(a, channel, 0)
        stage.publish(a, channel, "not you", exclude={"users": [user]})
        stage.publish(b, channel, 1)
        with stage.ws(c, user) as one:
            one.send(type="subscribe", channel=channel, payload={"since": {
                key: first[key] for key in ("offset", "epoch")}})
            one.wait_payload(1)
            assert one.times("not you") == 0, "R17: also when recovering"

    def filters():
        channel = f"room:{stage.name()}"
        with stage.ws(a, stage.name()) as one:
            ack = one.request(type="subscribe", channel=channel, payload={"filter": {
                "kind": {"$ne": "noise"}, "$or": [{"n": {"$gte": 2}}, {"deep.flag": {"$exists": True}}]}})
            assert ack["type"] == "ack", ack
            sent = [{"n": 1}, {"n": 2}, {"n": 3, "kind": "noise"}, {"deep": {"flag": None}}, {"n": "2"}, {"n": 9}]
            for payload in sent:
                stage.publish(b, channel, payload)
            one.wait_payload({"n": 9})
            assert one.payloads() == [{"n": 2}, {"deep": {"flag": None}}, {"n": 9}], "R16: $ne matches a missing field"

    def poll_pages():
        user, channel = stage.name(), f"room:{stage.name()}"
        last = stage.poll(a, user, timeout=0, channels=channel).json["last_poll_id"]
        messages = [{"channel": channel, "type": "message", "payload": n} for n in range(130)]
        stage.post(b, "/publish/batch", {"messages": messages})
        heard, nodes = [], iter((b, c, a, b, c))
        while True:
            answer = stage.poll(next(nodes), user, last_poll_id=last, channels=channel, timeout=0).json
            heard += [event["payload"] for event in answer["events"]]
            last = answer["last_poll_id"]
            assert answer["has_more"] is (len(answer["events"]) == 100), answer["has_more"]
            if not answer["has_more"]:
                break
        assert heard == list(range(130)), heard
        # Any event's number is good, on any node; the answer to a number is the same wherever it is asked (R31).
        first = stage.poll(a, user, "POST", {"channels": [channel], "timeout": 0}).json["last_poll_id"]
        stage.publish(c, channel, "x"), stage.publish(c, channel, "y")
        events = stage.poll(b, user, last_poll_id=first, channels=channel).json["events"]
        assert stage.poll(c, user, last_poll_id=first, channels=channel).json["events"] == events
        part = stage.poll(a, user, last_poll_id=events[0]["id"], channels=channel, timeout=100).json["events"]
        assert [event["payload"] for event in part] == ["y"], "a time-out over 30 is no error"

    def poll_sends():
        user, channel = stage.name(), f"room:{stage.name()}"
        with stage.ws(b, stage.name(), channel) as one:
            answer = stage.poll(a, user, "POST", {"timeout": 0, "messages": [
                {"type": "message", "channel": channel, "payload": "from a poll", "ack_id": "1"},
                {"type": "subscribe", "channel": channel, "ack_id": "2"}, {"nonsense": True}]}).json
            assert [reply["type"] for reply in answer["replies"]] == ["ack", "subscribed", "ack", "error"], answer
            assert one.wait_payload("from a poll")["user_id"] == user
        stage.publish(c, channel, "heard")
        for node in (c, b):
            events = stage.poll(node, user, last_poll_id=answer["last_poll_id"]).json["events"]
            assert [event["payload"] for event in events] == ["heard"], events

    def poll_presence():
        user, resource = stage.name(), f"presence:{stage.name()}"
        with stage.ws(c, stage.name(), resource, "presence") as watcher:
            answer = stage.poll(a, user, "POST", {"timeout": 0, "messages": [
                {"type": "presence:join", "channel": resource, "payload": {"name": "Poll"}}]}).json
            sync = answer["replies"][0]
            assert sync["type"] == "presence:sync" and sync["payload"]["users"][0]["id"] == user, sync
            both = {"presence:join", "presence"}
            while both:
                heard = watcher.wait(lambda m: m["payload"].get("id", m["payload"].get("user_id")) == user, f"{both}")
                assert heard["type"] != "presence" or heard["payload"]["status"] == "online", heard
                both.discard(heard["type"])
            # What has no history is heard between two polls, on whichever node (R31).
            peer = stage.name()
            with stage.ws(b, peer) as other:
                other.request(type="presence:join", channel=resource)
                answer = stage.poll(b, user, last_poll_id=answer["last_poll_id"], timeout=10).json
                heard = [(e["type"], e["payload"]["id"]) for e in answer["events"] if e["channel"] == resource]
                assert heard == [("presence:join", peer)], answer
            answer = stage.poll(c, user, last_poll_id=answer["last_poll_id"], timeout=10).json
            heard = [(e["type"], e["payload"]["id"]) for e in answer["events"] if e["channel"] == resource]
            assert heard == [("presence:leave", peer)], answer
            stage.poll(b, user, "POST", {"timeout": 0, "last_poll_id": answer["last_poll_id"], "messages": [
                {"type": "presence:leave", "channel": resource}]})
            watcher.wait(lambda m: m["type"] == "presence:leave" and m["payload"]["id"] == user, "the leave")
            # No more polls: five seconds later the user is offline.
            watcher.wait(lambda m: m["type"] == "presence" and m["payload"]["user_id"] == user
                         and m["payload"]["status"] == "offline", "offline")

    def poll_after_poll():
        # A letter between nodes may not overtake what was said before it was written.
        for n in range(100):
            user, channel = stage.name(), f"presence:{stage.name()}"
            last = stage.poll(a, user, timeout=0, channels=channel).json["last_poll_id"]
            stage.publish(c, channel, n)
            answer = stage.poll(b, user, last_poll_id=last, channels=channel, timeout=5).json
            assert [event["payload"] for event in answer["events"]] == [n], (n, answer)

    def poll_marks():
        user = stage.name()

        def create():
            answer = stage.post(b, "/notifications", {"title": "t", "message": "m", "type": "info",
                                                      "recipients": [user]})
            assert answer.status == 201, answer
            return answer.json["id"]

        def status(ident):
            return stage.get(c, f"/notifications/{ident}").json["status"]
        first = create()
        answer = stage.poll(a, user, timeout=0).json
        assert [e["payload"]["id"] for e in answer["events"]] == [first] and status(first) == "delivered", answer
        second = create()
        heard = []
        while second not in heard:
            answer = stage.poll(b, user, last_poll_id=answer["last_poll_id"], timeout=10).json
            heard += [e["payload"]["id"] for e in answer["events"]]
        assert heard == [second], "the first one's live message is a twin"
        wait_until("it is delivered", lambda: status(second) == "delivered")

    check("lost history is told mid-connection, and on resuming (R17)", resync)
    check("a WebSocket takes a stream's cursor (R22)", cursor_of_a_stream_on_a_websocket)
    check("who was excluded stays so when recovering (R17)", excluded_stay_excluded)
    check("a filter selects by payload (R16)", filters)
    check("a poll's pages, numbers and repetitions (R31)", poll_pages)
    check("a poll sends messages; what they subscribe to is heard by the next polls (R32)", poll_sends)
    check("a poll joins, hears between polls and leaves, each on another node (R31)", poll_presence)
    check("what is said just before a poll goes on at another node is not missed (R31)", poll_after_poll)
    check("a poll begins with what is pending; what it brings is delivered", poll_marks)

    # --- channels.md 1
    def namespaces():
        me, free, hour, day = stage.name(), "authenticated", ["100", "1h"], ["1000", "1d"]
        shown = {section["pattern"]: section for section in namespace_settings()}
        table = [  # name, may subscribe, may publish, kept
            (f"user:{me}", True, False, True), (f"user:{me}:sub:x", True, False, True),
            (f"user.{me}.box", True, True, True), (f"user.{me}x.box", False, True, True),
            ("user:other", False, False, True), ("presence", True, True, False), ("presence:a/b", True, False, False),
            ("conversation:1", True, True, True), ("chat", True, True, True), ("chat.a.b", True, True, True),
            ("chat:a:b", True, True, True), ("document.a", True, True, True), ("room:a:b", True, True, True),
            ("entity:Task", True, False, True), ("entity:Task:1", True, False, True), ("topic:x", True, False, True),
            ("feed:updates", True, False, True), ("dashboard", True, False, True), ("dashboard.x", True, False, True),
            ("metrics", True, False, True), ("metrics.x", True, False, True), ("news", True, False, True),
            ("public:x", True, False, True), ("general", True, True, True), ("admin-dashboard", False, False, True),
        ]
        with stage.ws(a, me) as one:
            for name, subscribe, publish, kept in table:
                answer = one.request(type="subscribe", channel=name)
                assert (answer["type"] == "ack") is subscribe, (name, answer)
                if subscribe:
                    assert answer["payload"]["data"]["recoverable"] is kept, (name, answer)
                else:
                    assert answer["payload"]["code"] == "FORBIDDEN", (name, answer)
                answer = one.request(type="message", channel=name, payload=1)
                assert (answer["type"] == "ack") is publish, (name, answer)
                one.request(type="unsubscribe", channel=name)
        for pattern, history in (("chat", day), ("conversation:{id}", day), ("user:{id}", day), ("topic:{name}", hour),
                                 ("room:**", ["1000", "1h"]), ("entity:{name}", ["1000", "1h"]), ("public:**", hour),
                                 ("general", hour), ("presence", None), ("presence:**", None)):
            kept = shown[pattern].get("size"), shown[pattern].get("age")
            assert (list(kept) if history else None) == history, (pattern, kept)
        for pattern in ("metrics", "metrics.**", "dashboard.**"):
            assert shown[pattern]["conflate"] == "true", pattern
        del free

    def namespace_settings():
        shown = subprocess.run([stage.binary, "print-config", "--dev"], text=True, capture_output=True, check=True)
        found, inside = [], False
        for line in shown.stdout.splitlines():
            if line.startswith("["):
                inside = "namespaces" in line
                if line == "[[namespaces]]":
                    found.append({})
            elif inside and " = " in line:
                name, value = line.split(" = ", 1)
                found[-1][name] = value.strip('"')
        return found

    check("every shipped namespace lets in, keeps and refuses as listed", namespaces)

    # --- channels.md 3
    def no_flicker():
        user = stage.name()
        with stage.ws(a, stage.name(), f"presence:{user}") as watcher:
            with stage.ws(b, user) as one:
                one.wait_type("connect")
                watcher.wait_type("presence")
            with stage.ws(c, user) as two:
                two.wait_type("connect")
                for status in ("away", "online", "away", "online", "busy", "away", "busy"):
                    two.request(type="presence", payload={"status": status})
                watcher.wait(lambda m: m["type"] == "presence" and m["payload"]["status"] == "busy", "busy")
                told = [m for m in watcher.heard if m["type"] == "presence"]
                assert [m["payload"]["status"] for m in told].count("offline") == 0, "a quick reconnect is no flicker"
                assert len(told) <= 5, "at most one change a user a second"

    check("a quick reconnect is no flicker, a storm of changes few messages", no_flicker)

    # --- http-api.md 5
    def rest_shapes():
        user, channel = stage.name(), f"room:{stage.name()}"
        with stage.ws(a, user, channel) as one, stage.ws(b, user, channel), stage.stream(c, "/events", user) as stream:
            assert stream.status == 200, (stream.status, stream.body)
            ident = one.wait_type("connect")["payload"]["connection_id"]
            wait_until("three connections", lambda: len(stage.get(
                c, f"/connections?user_id={user}").json["connections"]) == 3, 20)
            page = stage.get(b, f"/connections?user_id={user}&limit=2").json
            rest = stage.get(a, f"/connections?user_id={user}&limit=2&cursor={page['next']}").json
            assert len(page["connections"]) == 2 and len(rest["connections"]) == 1, (page, rest)
            assert rest["next"] is None, rest
            shown = stage.get(c, f"/connections/{ident}").json
            assert shown["id"] == ident and RFC3339.match(shown["connected_at"]), shown
            [counted] = stage.get(c, f"/channels?prefix={channel}").json["channels"]
            assert counted == {"channel": channel, "subscribers": 2}, counted
            status = stage.get(a, f"/users/{user}/presence").json
            assert set(status) == {"user_id", "status", "last_seen", "connections"}, status
            assert (status["status"], status["connections"]) == ("online", 3), status
            many = stage.post(b, "/users/presence", {"user_ids": [user, "never-seen"]}).json["users"]
            assert [entry["user_id"] for entry in many] == [user, "never-seen"], many
            assert many[1] == {"user_id": "never-seen", "status": "offline", "last_seen": None, "connections": 0}, "R40"
        for n in range(5):
            stage.publish(a, channel, n)
        history = stage.get(b, f"/channels/{channel}/history?limit=3").json
        assert set(history) >= {"messages", "epoch", "offset", "next"}, history
        first = stage.get(c, f"/channels/{channel}/history?since={history['epoch']}:1&limit=2").json
        assert [m["payload"] for m in first["messages"]] == [1, 2], first
        later = stage.get(a, f"/channels/{channel}/history?since=3").json
        assert [m["payload"] for m in later["messages"]] == [3, 4], later
        assert stage.get(a, f"/channels/{channel}/history?limit=1001").status in (200, 400)
        stats = stage.get(b, "/stats").json
        assert {"id", "version", "connections"} <= set(stats["nodes"][0]), stats

    def string_events():
        # R39: an event with a channel is a publication whose payload is the string.
        channel = f"room:{stage.name()}"
        with stage.ws(a, stage.name(), channel) as one, stage.stream(b, "/events", stage.name(), channel=channel) as two:
            two.event("subscribed")
            made = stage.post(c, "/events", {"event": "note", "data": "a\nb", "channel": channel})
            assert made.status == 201 and set(made.json) >= {"id", "event", "data", "priority", "retry", "comment"}, made
            assert one.wait_type("note")["payload"] == "a\nb"
            assert two.wait(lambda e: e["event"] == "note", "note")["data"] == "a\nb"

    check("lists, history and presence over REST have their shapes", rest_shapes)
    check("an event with a channel reaches all transports (R39)", string_events)

