"""The enzyme document, from top to bottom, as its clients meet the gateway: what goes over the wire. The components themselves are
tested where they are built. Where `spec/` rules otherwise, the ruling is named."""

import threading

from stage import QUICK, handshake, silence, wait_until


def facts(check, stage):
    a, b, c = stage.a, stage.b, stage.c

    def send(listener, channel, data):
        """R11: `send(channel, data)` on the wire."""
        listener.send(type="message", channel=channel, payload=data)

    # --- Connection types
    def endpoints():
        for path in ("/ws", "/ws/dashboard", "/ws/anything"):
            with stage.ws(a, stage.name(), path=path) as one:
                assert one.wait(lambda m: True, "the welcome")["type"] == "connect"
            assert handshake(b, path).status == 401
        with stage.stream(c, "/events", stage.name()) as stream:
            stream.event("connected")

    def token_ways():
        token = stage.token(stage.name())
        import http.client

        from stage import UPGRADE
        for node, headers, answered in ((a, {"Authorization": f"Bearer {token}"}, None),
                                        (b, {"Sec-WebSocket-Protocol": f"carillon.bearer, {token}"}, "carillon.bearer"),
                                        (c, {"Sec-WebSocket-Protocol": f"carillon.bearer, {token}, carillon.json"},
                                         "carillon.json")):
            connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
            connection.request("GET", "/ws", headers={**UPGRADE, **headers})
            answer = connection.getresponse()
            assert answer.status == 101, (headers, answer.status)
            assert answer.headers["Sec-WebSocket-Protocol"] == answered, answer.headers
            connection.close()
        # The first found wins, in the order header, subprotocol, query: a bad one is not passed over.
        assert handshake(a, f"/ws?token={token}", Authorization="Bearer x").code == "INVALID_TOKEN"
        assert handshake(a, f"/ws?token={token}", **{"Sec-WebSocket-Protocol": "carillon.bearer, x"}).code == \
            "INVALID_TOKEN"

    check("sockets at /ws and /ws/{name}, streams at /events", endpoints)
    check("a token by header, subprotocol or query, the first found", token_ways)

    # --- Sending
    def send_is_published():
        with stage.ws(a, stage.name(), "chat") as one, stage.ws(b, stage.name(), "chat") as two:
            data = {"text": "hello " + stage.name(), "timestamp": 1701234567890}
            send(one, "chat", data)
            for listener in (one, two):
                heard = listener.wait_payload(data)
                assert heard["type"] == "message" and heard["channel"] == "chat", heard

    check("send('chat', data) reaches the channel's subscribers as data", send_is_published)

    # --- Channel subscriptions
    def metrics():
        with stage.ws(a, stage.name(), "metrics", "dashboard.metrics", "dashboard", path="/ws/dashboard") as one:
            for channel, data in (("metrics", {"activeUsers": 3, "revenue": 9.5}),
                                  ("dashboard.metrics", {"revenue": 1, "users": 2, "orders": 3}),
                                  ("dashboard", {"n": 1})):
                stage.publish(b, channel, data)
                assert one.wait_payload(data)["channel"] == channel
                error = one.request(type="message", channel=channel, payload=data)
                assert error["payload"]["code"] == "FORBIDDEN", "clients do not publish figures"

    def caches():
        # Cache strategies take entities by name: what arrives says which, what happened, and the whole record.
        with stage.ws(c, stage.name(), "entity:user", "entity:message", "entity:post") as one:
            for name, action in (("user", "updated"), ("message", "created"), ("post", "deleted")):
                data = {"id": "7", "name": name}
                answer = stage.post(a, f"/entities/{name}/7/events", {"action": action, "data": data})
                assert answer.status == 200, answer
                heard = one.wait_payload(data)
                assert (heard["type"], heard["channel"]) == (f"entity:{action}", f"entity:{name}"), heard

    def leaving():
        channel = f"chat.{stage.name()}"
        with stage.ws(a, stage.name(), channel) as one:
            one.send(type="subscribe", channel=channel)
            one.wait_type("subscribed")
            stage.publish(b, channel, "once")
            one.wait_payload("once")
            one.request(type="unsubscribe", channel=channel)
            stage.publish(b, channel, "gone")
            one.send(type="ping")
            silence(one, lambda m: m["type"] == "pong", lambda m: m.get("payload") == "gone")
            assert one.times("once") == 1, "subscribing twice delivers once"

    check("metrics channels are heard, and written by backends alone", metrics)
    check("entity events name the entity and what happened", caches)
    check("unsubscribing ends it; subscribing twice delivers once", leaving)

    # --- Event streams
    def named_events():
        user = stage.name()
        with stage.stream(a, "/events", user) as one:
            ident = one.event("connected")["json"]["connection_id"]
            for body in ({"connection_id": ident}, {"user_id": user}, {}):
                answer = stage.post(b, "/events", {"event": "update", "data": '{"n":1}', **body})
                assert answer.status == 201 and answer.json["event"] == "update", answer
                assert one.event("update")["json"] == {"n": 1}
            stage.to_user(c, user, "notification", {"message": "hi"})
            assert one.event("notification")["json"] == {"message": "hi"}
            answer = stage.post(b, "/events", {"event": "shaped", "data": "a\nb", "retry": 4000, "comment": "note"})
            heard = one.wait(lambda e: e["event"] == "shaped", "shaped")
            assert heard["data"] == "a\nb" and heard["retry"] == "4000" and heard["comment"] == "note", heard
            count = stage.post(c, "/events/broadcast", {"event": "counted", "data": "x", "recipients": [ident, ident]})
            assert count.json == 1, count

    check("update and notification come as named events", named_events)

    # --- One to one
    def one_to_one():
        # R12: a peer's channel is published to, one's own is subscribed to.
        me, peer = stage.name(), stage.name()
        with stage.ws(a, me, f"user.{me}.messages") as one, stage.ws(b, peer, f"user.{peer}.messages") as two:
            for sender, channel, receiver in ((one, f"user.{peer}.messages", two), (two, f"user.{me}.messages", one)):
                data = {"text": "hi", "from": me, "timestamp": 1, "to": channel}
                send(sender, channel, data)
                heard = receiver.wait_payload(data)
                assert heard["channel"] == channel and heard["user_id"] in (me, peer), heard
            error = one.request(type="subscribe", channel=f"user.{peer}.messages")
            assert error["payload"]["code"] == "FORBIDDEN", error

    check("messages of one user to another go by the receiver's channel", one_to_one)

    # --- Presence by announcements
    def announcements():
        me = stage.name()
        with stage.ws(a, me, "presence") as one, stage.ws(b, stage.name(), "presence") as two, \
                stage.ws(c, stage.name()) as three:
            for kind in ("join", "leave"):
                send(one, "presence", {"type": kind, "userId": me})
                heard = two.wait_payload({"type": kind, "userId": me})
                assert heard["channel"] == "presence" and heard["user_id"] == me, heard
            # A user's own status stands on the same channel under a type of its own.
            three.request(type="presence", payload={"status": "busy"})
            two.wait(lambda m: m["type"] == "presence" and m["payload"].get("status") == "busy", "busy")
            # Nobody announces somebody else (R4).
            send(one, "presence", {"type": "join", "userId": "victim"})
            heard = two.wait(lambda m: m["type"] == "message" and m["payload"].get("userId") != "victim"
                             and m["payload"]["type"] == "join", "an announcement")
            assert heard["payload"]["userId"] == me, heard

    check("presence is announced on the presence channel, under one's own name", announcements)

    # --- Collaboration
    def collaboration():
        channel = f"document.{stage.name()}"
        with stage.ws(a, stage.name(), channel) as one, stage.ws(b, stage.name(), channel) as two:
            for data in ({"type": "content-change", "content": "x" * 5000, "userId": "u"},
                         {"type": "cursor-move", "userId": "u", "position": {"line": 1, "column": 2.5}},
                         {"type": "user-leave", "userId": "u"}):
                send(one, channel, data)
                assert two.wait_payload(data)["channel"] == channel
        with stage.ws(c, stage.name()) as late:
            ack = late.request(type="subscribe", channel=channel, payload={"limit": 2})
            assert ack["type"] == "ack", ack
            late.wait_payload({"type": "user-leave", "userId": "u"})
            kinds = [p["type"] for p in late.payloads()]
            assert kinds == ["cursor-move", "user-leave"], "R21: the last N"

    check("a document's changes and cursors reach the others, and late comers", collaboration)

    # --- Notifications, chat
    def notifications():
        user = stage.name()
        with stage.ws(a, user) as one:
            one.send(type="subscribe", channel="notifications")
            one.wait_type("subscribed")
            stage.to_user(b, user, "notification", {"id": "n1", "message": "hello"})
            heard = one.wait_type("notification")
            assert heard["channel"] == "notifications" and heard["payload"] == {"id": "n1", "message": "hello"}, heard
            assert len([m for m in one.heard if m["type"] == "notification"]) == 1

    def chat_room():
        channel = f"chat.{stage.name()}"
        with stage.ws(a, stage.name(), channel) as one, stage.ws(b, stage.name(), channel) as two:
            for data in ({"type": "message", "data": {"text": "hi", "userId": "u", "timestamp": 1}},
                         {"type": "typing", "userId": "u"}):
                send(one, channel, data)
                for listener in (one, two):
                    listener.wait_payload(data)

    check("notifications are heard by subscribing to them", notifications)
    check("a chat room carries messages and typing", chat_room)

    # --- Reconnection, pooling, conflation
    def silent_clients_are_closed():
        # heartbeatInterval is the client's; the server's own patience is 2 × interval + 10 s.
        shown = stage.settings()["heartbeat"]
        assert shown["interval"] == "30s", shown
        with stage.other(QUICK.replace('interval = "1s"', 'interval = "1s"\ntimeout = "3s"')) as quick:
            from stage import raw_silent
            assert raw_silent(quick.a, quick.token("still")) == 4408

    def conflation():
        # R15: a slow reader of a conflated channel gets the newest; a quick one gets all.
        channel = f"dashboard.{stage.name()}"
        with stage.ws(b, stage.name(), channel) as quick:
            messages = [{"channel": channel, "type": "message", "payload": n, "meta": {"conflate_key": "k"}}
                        for n in range(50)]
            assert stage.post(a, "/publish/batch", {"messages": messages}).status == 200
            quick.wait_payload(49)
            assert quick.payloads() == sorted(quick.payloads()) and quick.payloads()[-1] == 49

    def many_at_once():
        user, heard = stage.name(), []
        held = [stage.ws((a, b, c)[n % 3], user, "chat") for n in range(8)]
        mark = stage.name()
        threads = [threading.Thread(target=lambda one=one: heard.append(one.wait_payload(mark)["id"])) for one in held]
        for thread in threads:
            thread.start()
        stage.publish(b, "chat", mark)
        for thread in threads:
            thread.join(60)
        for one in held:
            one.close()
        assert len(heard) == 8 and len(set(heard)) == 1, heard
        wait_until("all are gone", lambda: stage.get(a, f"/connections?user_id={user}").json["connections"] == [])

    check("who answers no ping is closed with 4408", silent_clients_are_closed)
    check("conflated channels end with the newest", conflation)
    check("all tabs of a user hear a message, under one id", many_at_once)
