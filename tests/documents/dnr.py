"""The DNR document, from top to bottom, against running nodes. Where `spec/` rules otherwise, the ruling is named."""

import threading
import time

from stage import (QUICK, WsListener, closed_with, handshake, is_now_ms, silence, wait_until)


def facts(check, stage):
    a, b, c = stage.a, stage.b, stage.c

    def open_(node, user, *channels, **more):
        return stage.ws(node, user, *channels, profile="dnr", **more)

    def entity(node, name, ident, action, data=None, **more):
        body = {"action": action, **({} if data is None else {"data": data}), **more}
        answer = stage.post(node, f"/entities/{name}/{ident}/events", body)
        assert answer.status == 200, answer
        return answer.json

    # --- Message format
    def first_message():
        # protocol.md 1 and R7: no welcome; `subscribed` of the user's own stream stands first.
        with open_(a, stage.name()) as one:
            first = one.wait(lambda m: True, "the first message")
            assert first["type"] == "subscribed" and first["channel"] == "notifications", first
            assert {"offset", "epoch", "tag"} <= set(first["payload"]), first
            is_now_ms(first["timestamp"])

    def message_format():
        channel = f"room:{stage.name()}"
        with open_(a, stage.name(), channel) as one, open_(b, stage.name(), channel) as two:
            stage.publish(c, channel, {"any": [1, None, "x"]})
            for listener in (one, two):
                heard = listener.wait_type("message")
                assert heard["channel"] == channel and heard["payload"] == {"any": [1, None, "x"]}, heard
                is_now_ms(heard["timestamp"])
            # A number as timestamp is a client's own business.
            one.send(type="message", channel=channel, payload=1, requestId="req_1", timestamp=1701234567890)
            ack = one.wait(lambda m: m.get("requestId") == "req_1", "a reply")
            assert ack["type"] == "ack" and ack["payload"]["status"] == "success", "R20"

    def correlation():
        with open_(b, stage.name()) as one:
            one.wait_type("subscribed")
            for request, reply in (({"type": "subscribe", "channel": "entity:Task"}, "subscribed"),
                                   ({"type": "unsubscribe", "channel": "entity:Task"}, "unsubscribed"),
                                   ({"type": "ping"}, "pong"),
                                   ({"type": "presence:join", "channel": "presence:x"}, "presence:sync"),
                                   ({"type": "presence:heartbeat", "channel": "presence:x"}, "ack"),
                                   ({"type": "presence:leave", "channel": "presence:x"}, "ack"),
                                   ({"type": "subscribe", "channel": "nowhere"}, "error"),
                                   ({"type": "entity:created", "channel": "entity:Task"}, "error")):
                one.send(requestId="req_123", timestamp=1701234567890, **request)
                heard = one.wait(lambda m: m.get("requestId") == "req_123", "a reply")
                assert heard["type"] == reply, (request, heard)
                assert "ack_id" not in heard, heard
                is_now_ms(heard["timestamp"])
                if reply == "error":
                    assert set(heard["payload"]) == {"code", "message", "details"}, heard

    check("no welcome; the user's own stream stands first", first_message)
    check("timestamps are integer milliseconds", message_format)
    check("requestId correlates every request with its reply", correlation)

    # --- Channel naming
    def channel_names():
        user = stage.name()
        with open_(a, user) as one:
            for channel in ("entity:Task", "entity:Task:550e8400-e29b-41d4-a716-446655440000",
                            "entity:Task:v1.2", "presence:workspace/tasks", f"user:{user}"):
                ack = one.request(type="subscribe", channel=channel)
                assert ack["type"] == "ack", (channel, ack)
            for channel, code in ((f"user:{stage.name()}", "FORBIDDEN"), ("entity:", "CHANNEL_NOT_FOUND"),
                                  ("entity", "CHANNEL_NOT_FOUND")):
                error = one.request(type="subscribe", channel=channel)
                assert error["payload"]["code"] in (code, "INVALID_MESSAGE"), (channel, error)
            stage.to_user(b, user, "private", {"for": user})
            heard = one.wait_type("private")
            assert heard["channel"] == f"user:{user}", heard

    check("entity, record, presence and user channels are named as documented", channel_names)

    # --- Entity events
    def entity_events():
        name, ident = stage.name("Task"), "550e8400-e29b-41d4-a716-446655440000"
        kind, record = f"entity:{name}", f"entity:{name}:{ident}"
        task = {"id": ident, "title": "New task", "status": "open", "created_at": "2024-11-28T10:00:00Z"}
        with open_(a, stage.name(), kind) as all_, open_(b, stage.name(), record) as single, \
                open_(c, stage.name(), kind, record) as both:
            listeners = ((all_, kind), (single, record), (both, record))
            for action, data, payload in (("created", task, task), ("updated", {**task, "status": "done"},
                                                                    {**task, "status": "done"}),
                                          ("deleted", None, {"id": ident})):
                answer = entity(b, name, ident, action, data)
                for listener, channel in listeners:
                    heard = listener.wait_type(f"entity:{action}")
                    assert heard["channel"] == channel, "R14: the more specific one"
                    assert heard["payload"] == payload and heard["id"] == answer["id"], heard
                    is_now_ms(heard["timestamp"])
            entity(a, name, ident, "updated", {"n": 1}, changes={"status": ["open", "done"]})
            heard = both.wait(lambda m: m["payload"] == {"n": 1}, "the update")
            assert heard["meta"]["changes"] == {"status": ["open", "done"]}, "R38"
            ids = [m["id"] for m in both.heard if m["type"].startswith("entity:")]
            assert len(ids) == len(set(ids)) == 4, "once each, whatever channels one has"
            # Another record is not heard on this one.
            entity(c, name, "other", "updated", {"id": "other"})
            all_.wait_payload({"id": "other"})
            entity(c, name, ident, "updated", "end")
            silence(single, lambda m: m["payload"] == "end", lambda m: m["payload"] == {"id": "other"})

    def recovery_of_twins():
        name = stage.name("Task")
        kind, record = f"entity:{name}", f"entity:{name}:7"
        with open_(a, stage.name(), kind, record) as one:
            starts = {m["channel"]: m["payload"] for m in one.heard}
            while {kind, record} - set(starts):
                heard = one.wait_type("subscribed")
                starts[heard["channel"]] = heard["payload"]
        for n in range(3):
            entity(b, name, "7", "updated", {"n": n})
        with open_(c, stage.name()) as again:
            for channel in (record, kind):
                since = {key: starts[channel][key] for key in ("offset", "epoch", "tag")}
                ack = again.request(type="subscribe", channel=channel, payload={"since": since})
                assert ack["type"] == "ack", ack
            entity(b, name, "7", "updated", "end")
            again.wait_payload("end")
            heard = [m["payload"]["n"] for m in again.heard
                     if m["type"] == "entity:updated" and m["payload"] != "end"]
            assert heard == [0, 1, 2], heard

    check("entity:created, updated and deleted reach kind and record, once to who has both", entity_events)
    check("after a reconnect an entity's twin events come once", recovery_of_twins)

    # --- Presence
    def presence():
        resource = f"presence:workspace/{stage.name()}"
        alice, bob = stage.name("alice"), stage.name("bob")
        with open_(a, stage.name(), resource) as watcher:
            token = stage.token(alice, name="Alice")
            one = WsListener(a, token, more={"profile": "dnr"})
            two = WsListener(b, stage.token(bob), more={"profile": "dnr"})
            tab = WsListener(c, token, more={"profile": "dnr"})
            with one, two, tab:
                def join(listener, **payload):
                    listener.send(type="presence:join", channel=resource, payload=payload, requestId="j")
                    sync = listener.wait_type("presence:sync")
                    assert sync["requestId"] == "j" and sync["channel"] == resource, sync
                    assert set(sync["payload"]) == {"users"}, sync
                    for entry in sync["payload"]["users"]:
                        assert set(entry) == {"id", "name", "lastSeen", "metadata"}, entry
                        is_now_ms(entry["lastSeen"])
                    return {entry["id"]: entry for entry in sync["payload"]["users"]}

                def told(kind, user):
                    heard = watcher.wait(lambda m: m["type"] == kind, kind)
                    assert heard["channel"] == resource and heard["payload"]["id"] == user, heard
                    assert set(heard["payload"]) == {"id", "name", "lastSeen", "metadata"}, heard
                    is_now_ms(heard["payload"]["lastSeen"])
                    return heard["payload"]

                # R25: the sync holds the joiner; the token's name beats the payload's.
                seen = join(one, name="Mallory", metadata={"cursor": 3})
                assert set(seen) == {alice} and seen[alice]["name"] == "Alice", seen
                assert seen[alice]["metadata"] == {"cursor": 3}, seen
                assert told("presence:join", alice)["name"] == "Alice"
                seen = join(two, name="Bob")
                assert set(seen) == {alice, bob} and seen[bob]["name"] == "Bob", seen
                told("presence:join", bob)
                assert one.wait_type("presence:join")["payload"]["id"] == bob, "joining subscribes (R25)"
                # Two tabs are one entry, announced once.
                assert set(join(tab)) == {alice, bob}
                tab.request(type="presence:leave", channel=resource)
                listed = stage.get(c, "/presence/" + resource.removeprefix("presence:").replace("/", "%2F")).json
                assert [entry["id"] for entry in listed["users"]] == sorted([alice, bob]), listed
                assert listed["count"] == 2 and listed["resource"] == resource.removeprefix("presence:"), listed
                ack = two.request(type="presence:heartbeat", channel=resource)
                assert ack["type"] == "ack", ack
                two.request(type="presence:leave", channel=resource)
                told("presence:leave", bob)
            told("presence:leave", alice)
            kinds = [(m["type"], m["payload"]["id"]) for m in watcher.heard if m["type"].startswith("presence:")]
            assert kinds == [("presence:join", alice), ("presence:join", bob), ("presence:leave", bob),
                             ("presence:leave", alice)], kinds

    def presence_refusals():
        with open_(a, stage.name()) as one:
            error = one.request(type="presence:heartbeat", channel="presence:never-joined")
            assert error["payload"]["code"] == "CONFLICT", error
            for request in ({"type": "presence:join", "channel": "entity:Task"},
                            {"type": "presence:join"}, {"type": "presence:join", "channel": "presence:"}):
                error = one.request(**request)
                assert error["payload"]["code"] == "INVALID_MESSAGE", (request, error)
            for kind in ("presence:sync", "presence:anything"):
                error = one.request(type=kind, channel="presence:x")
                assert error["payload"]["code"] == "FORBIDDEN", "R1"
            error = one.request(type="message", channel="presence:x", payload=1)
            assert error["payload"]["code"] == "FORBIDDEN", error

    def backends_presence():
        resource, user = stage.name("doc"), stage.name()
        from stage import call
        key = {"X-API-Key": stage.keys.api_key}
        with open_(b, stage.name(), f"presence:{resource}") as watcher:
            put = call(a, "PUT", f"/presence/{resource}/{user}", {"name": "Robot", "metadata": {"v": 1}}, key)
            assert put.status == 200 and put.json["id"] == user, put
            assert watcher.wait_type("presence:join")["payload"]["name"] == "Robot"
            assert call(c, "DELETE", f"/presence/{resource}/{user}", None, key).status == 204
            assert watcher.wait_type("presence:leave")["payload"]["id"] == user

    check("presence: join, sync, leave, heartbeat, two tabs, the token's name", presence)
    check("presence: what is refused", presence_refusals)
    check("presence: backends put and remove users", backends_presence)

    # --- Private channel, user messages
    def send_to_user():
        user = stage.name()
        with open_(a, user) as one, open_(b, user) as two, stage.ws(c, user) as other_profile:
            for listener in (one, two):
                listener.wait_type("subscribed")
            other_profile.wait_type("connect")
            stage.to_user(c, user, "hint", {"n": 1})
            for listener in (one, two, other_profile):
                assert listener.wait_type("hint")["payload"] == {"n": 1}

    check("a message to a user reaches all the user's connections", send_to_user)

    # --- Client options
    def client_heartbeat():
        assert stage.settings()["heartbeat"]["interval"] == "30s", stage.settings()["heartbeat"]
        with open_(a, stage.name()) as one:
            one.send(type="ping", timestamp=1701234567890)
            pong = one.wait_type("pong")
            is_now_ms(pong["timestamp"])

    check("ping is answered by pong, well within the client's 25 seconds", client_heartbeat)

    # --- Optimistic updates
    def optimistic():
        # The answer's id is the event's: what comes back is recognised as one's own.
        name = stage.name("Task")
        with open_(b, stage.name(), f"entity:{name}") as one:
            first = entity(a, name, "1", "created", {"id": "1"}, id="mutation-1")
            again = entity(c, name, "1", "created", {"id": "1"}, id="mutation-1")
            assert first["id"] == again["id"] == "mutation-1" and again["duplicate"] is True, (first, again)
            entity(a, name, "1", "updated", "end")
            one.wait_payload("end")
            assert one.times({"id": "1"}) == 1
            bad = stage.post(a, f"/entities/{name}/1/events", {"action": "burnt", "data": {}})
            assert bad.status == 400 and bad.code == "INVALID_MESSAGE", bad

    check("a repeated change is one event with the id that was given", optimistic)

    # --- Endpoint
    def anonymous_where_allowed():
        with stage.other("[auth]\nallow_anonymous = true\n") as free:
            with WsListener(free.a, None, more={"profile": "dnr"}) as one:
                ack = one.request(type="subscribe", channel="public:x")
                assert ack["type"] == "ack", ack
                free.publish(free.b, "public:x", "for all")
                one.wait_payload("for all")
                for request in ({"type": "subscribe", "channel": "entity:Task"},
                                {"type": "subscribe", "channel": "user:x"},
                                {"type": "subscribe", "channel": "notifications"},
                                {"type": "presence:join", "channel": "presence:x"},
                                {"type": "message", "channel": "chat", "payload": 1}):
                    error = one.request(**request)
                    assert error["payload"]["code"] == "FORBIDDEN", (request, error)
            # A token that is there must be good.
            assert handshake(free.a, "/ws?token=x").code == "INVALID_TOKEN"
        assert handshake(a, "/ws?profile=dnr").code == "MISSING_TOKEN"
        assert handshake(a, f"/ws?profile=none&token={stage.token('x')}").status == 400

    check("without a token only what anyone may, and only where it is allowed", anonymous_where_allowed)

    # --- Security
    def permissions_filter():
        user = stage.name()
        with open_(a, user) as one:
            error = one.request(type="subscribe", channel="admin-dashboard")
            assert error["payload"]["code"] == "FORBIDDEN", error
            granted = stage.token(user, channels={"subscribe": ["admin-dashboard"]})
            assert one.request(type="auth", payload={"token": granted})["type"] == "ack"
            assert one.request(type="subscribe", channel="admin-dashboard")["type"] == "ack"
            # R18: a fresh token that no longer grants a channel ends that subscription with an error.
            one.request(type="auth", payload={"token": stage.token(user)})
            ended = one.wait(lambda m: m["type"] == "error", "the end of the subscription") if not [
                m for m in one.heard if m["type"] == "error" and m.get("channel") == "admin-dashboard"] else [
                m for m in one.heard if m["type"] == "error" and m.get("channel") == "admin-dashboard"][0]
            assert ended["channel"] == "admin-dashboard" and ended["payload"]["code"] == "FORBIDDEN", ended
            error = one.request(type="auth", payload={"token": stage.token("another")})
            assert error["payload"]["code"] == "FORBIDDEN", error

    def presence_is_for_who_may_hear_it():
        rule = '[[namespaces]]\npattern = "{}"\nsubscribe = ["{}"]\npublish = ["no"]\npresence = ["{}"]\n'
        rules = [("presence:secret", "granted", "granted"), ("presence:**", "authenticated", "authenticated"),
                 ("user:{id}", "self", "no"), ("notifications", "self", "no")]
        with stage.other("".join(rule.format(*each) for each in rules)) as other:
            insider = {"channels": {"subscribe": ["presence:secret"], "presence": ["presence:secret"]}}
            with WsListener(other.a, other.token("in", **insider)) as one, other.ws(other.b, "out") as two:
                assert one.request(type="presence:join", channel="presence:secret")["type"] == "ack"
                for kind in ("subscribe", "presence:join"):
                    error = two.request(type=kind, channel="presence:secret")
                    assert error["payload"]["code"] == "FORBIDDEN", (kind, error)
                assert two.request(type="presence:join", channel="presence:open")["type"] == "ack"
                listed = other.user_get(other.c, "in", "/presence/secret", **insider)
                assert listed.status == 200 and listed.json["users"][0]["id"] == "in", listed
                refused = other.user_get(other.c, "out", "/presence/secret")
                assert refused.status == 403 and refused.code == "FORBIDDEN", refused

    def subscription_limit():
        with open_(b, stage.name()) as one:
            for index in range(50):
                assert one.request(type="subscribe", channel=f"entity:Task:{index}")["type"] == "ack"
            error = one.request(type="subscribe", channel="entity:Task:50")
            assert error["payload"]["code"] == "SUBSCRIPTION_LIMIT", error
            assert error["payload"]["details"]["limit"] == 50, error
            # Subscribing twice is no error and counts once; automatic ones do not count (R16).
            assert one.request(type="subscribe", channel="entity:Task:7")["type"] == "ack"
            assert one.request(type="subscribe", channel="notifications")["type"] == "ack"
            one.request(type="unsubscribe", channel="entity:Task:7")
            assert one.request(type="subscribe", channel="entity:Task:50")["type"] == "ack"

    def broadcast_rate():
        channel = f"room:{stage.name()}"
        results = []
        messages = [{"channel": channel, "type": "m", "payload": n} for n in range(1000)]
        for _ in range(3):
            results += stage.post(a, "/publish/batch", {"messages": messages}).json["results"]
        refused = [r for r in results if r.get("code") == "RATE_LIMITED"]
        assert len(results) - len(refused) >= 1000 and refused, (len(results), len(refused))
        assert refused[0]["details"]["retry_after_ms"] > 0, refused[0]

    def abuse():
        with open_(c, stage.name()) as one:
            ended = threading.Event()

            def flood():
                try:
                    while not ended.wait(0.05):
                        one.burst([{"type": "ping"}] * 150)
                except Exception:  # closed, as it should be
                    pass

            flooding = threading.Thread(target=flood)
            began = time.monotonic()
            flooding.start()
            try:
                refused = one.wait_type("error")
                assert refused["payload"]["code"] == "RATE_LIMITED", refused
                payload = one.wait_type("disconnect")["payload"]
                assert payload["code"] == 4429 and payload["reconnect"] is True, payload
                assert payload["retry_after_ms"] > 0, payload
                assert time.monotonic() - began >= 2.9, "over the rate for 3 s running"
                assert closed_with(one) == 4429
            finally:
                ended.set()
                flooding.join()

    check("a token's grants open and close channels", permissions_filter)
    check("a presence list is for who may hear its channel", presence_is_for_who_may_hear_it)
    check("fifty subscriptions a connection", subscription_limit)
    check("a channel's publish rate is limited", broadcast_rate)
    check("who floods for three seconds is disconnected with 4429", abuse)

    # --- Presence time-out, with shorter times
    def presence_timeout():
        shown = stage.settings()["presence"]
        assert shown["timeout"] == "30s", shown
        with stage.other(QUICK) as quick:
            resource = "presence:doc"
            with quick.ws(quick.a, "watch", resource, profile="dnr") as watcher, \
                    quick.ws(quick.b, "quiet", profile="dnr") as quiet, \
                    quick.ws(quick.c, "lively", profile="dnr") as lively:
                quiet.request(type="presence:join", channel=resource)
                lively.request(type="presence:join", channel=resource)
                ended, late = threading.Event(), []

                def beat():
                    beaten = time.monotonic()
                    while not ended.wait(0.3):
                        lively.send(type="presence:heartbeat", channel=resource)
                        # On a starved machine even this thread may be silent for too long.
                        late.extend([1] if time.monotonic() - beaten > 1 else [])
                        beaten = time.monotonic()

                beating = threading.Thread(target=beat)
                beating.start()
                try:
                    left = watcher.wait_type("presence:leave")
                    assert left["payload"]["id"] == "quiet", left
                    # Heard again, it is there again.
                    assert quiet.request(type="presence:heartbeat", channel=resource)["type"] == "ack"
                    back = watcher.wait(lambda m: m["type"] == "presence:join" and m["payload"]["id"] == "quiet",
                                        "quiet again")
                    assert back["channel"] == resource, back
                finally:
                    ended.set()
                    beating.join()
                leaves = [m["payload"]["id"] for m in watcher.heard if m["type"] == "presence:leave"]
                assert late or "lively" not in leaves, leaves

    check("who is silent leaves, who beats stays", presence_timeout)

    # --- Success criteria
    def connection_list():
        user = stage.name()
        with open_(a, user, "entity:Task") as one:
            one.wait_type("subscribed")
            [shown] = stage.get(c, f"/connections?user_id={user}").json["connections"]
            assert set(shown) >= {"id", "user_id", "transport", "profile", "node", "connected_at", "channels"}, shown
            assert shown["profile"] == "dnr" and shown["transport"] == "websocket", shown
            assert "entity:Task" in shown["channels"], shown

        def gone():
            return stage.get(b, f"/connections?user_id={user}").json["connections"] == []
        wait_until("the connection is gone from the list", gone)

    check("connections are listed with what they hear", connection_list)
