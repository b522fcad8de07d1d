"""The SocialHub document, from top to bottom, against running nodes. Where `spec/` rules otherwise, the ruling is named."""

import threading
import time

from stage import (ENVELOPE, RFC3339, UUIDV7, WsListener, call, closed_with, handshake, is_now, sign_token, silence,
                   wait_until)

CODES = {"MISSING_TOKEN": 401, "INVALID_TOKEN": 401, "TOKEN_EXPIRED": 401, "INVALID_MESSAGE": 400,
         "CHANNEL_NOT_FOUND": 404, "MAX_CONNECTIONS": 429, "RATE_LIMITED": 429}


def facts(check, stage):
    a, b, c = stage.a, stage.b, stage.c

    # --- Overview
    def paths_and_port():
        settings = stage.settings()
        assert settings["server"]["listen"] == "0.0.0.0:8082", settings["server"]
        user = stage.name()
        assert stage.poll(a, user, timeout=0).status == 200
        assert stage.poll(b, user, "POST", {"timeout": 0}).status == 200

    check("the service is at /ws and the fallback at /api/v1/realtime/poll, on 8082", paths_and_port)

    # --- Connection
    def refused_connections():
        good, now = stage.token("ann"), int(time.time())
        for what, token, error, code in [
            ("none", None, "missing token", "MISSING_TOKEN"),
            ("empty", "", "missing token", "MISSING_TOKEN"),
            ("malformed", "not.a.token", "invalid token", "INVALID_TOKEN"),
            ("changed", good[:-4] + "AAAA", "invalid token", "INVALID_TOKEN"),
            ("expired", stage.token("ann", exp=now - 60), "token expired", "TOKEN_EXPIRED"),
        ]:
            query = "" if token is None else f"?token={token}"
            for node in (a, b, c):
                answer = handshake(node, "/ws" + query)
                assert answer.status == 401, (what, answer)
                assert answer.json["error"] == error and answer.code == code, (what, answer)
                assert answer.json["request_id"] == answer.headers["X-Request-Id"], (what, answer)

    def ready_at_once():
        # protocol.md 1: the profile's first message is `connect`; nothing has to be waited for before sending.
        with stage.ws(a, stage.name()) as one:
            one.send(id="msg_1", type="heartbeat")
            first = one.wait(lambda m: True, "the first message")
            assert first["type"] == "connect", first
            one.wait_type("heartbeat")

    check("a connection without a good token is refused with 401 and the documented words", refused_connections)
    check("a connection is ready to send at once", ready_at_once)

    # --- Authentication
    def documented_claims():
        now, user = int(time.time()), stage.name()
        token = stage.token(user, iat=now, exp=now + 60)
        plain = sign_token(stage.keys.jwt, {"user_id": user, "exp": now + 60, "iat": now})
        for given in (token, plain):
            listener = WsListener(b, given)
            with listener:
                assert listener.wait_type("connect")["payload"]["user_id"] == user

    check("a token needs user_id, exp and iat, HS256", documented_claims)

    # --- Message protocol
    def message_structure():
        user, channel = stage.name(), f"conversation:{stage.name()}"
        with stage.ws(a, user, channel) as one, stage.ws(b, stage.name(), channel) as two:
            one.send(id="msg_1234567890_abcdef", type="message", channel=channel, ack_id="ack_123",
                     timestamp="2024-03-01T12:00:00Z", payload={"content": "Hello!"}, something="ignored")
            heard = two.wait_type("message")
            assert heard["id"] == "msg_1234567890_abcdef" and heard["channel"] == channel, heard
            assert heard["payload"] == {"content": "Hello!"} and heard["user_id"] == user, heard
            assert set(heard) <= ENVELOPE and {"id", "type", "timestamp", "offset", "epoch", "tag"} <= set(heard), heard
            assert "ack_id" not in heard, heard
            is_now(heard["timestamp"])
            ack = one.wait_type("ack")
            assert ack["ack_id"] == "ack_123" and RFC3339.match(ack["timestamp"]) and UUIDV7.match(ack["id"]), ack

    check("messages have the documented fields; the client's own id is kept", message_structure)

    # --- Connection events
    def connect_event():
        user = stage.name()
        with stage.ws(c, user) as one:
            connect = one.wait_type("connect")
            payload = connect["payload"]
            assert set(connect) == {"id", "type", "payload", "timestamp"}, connect
            assert set(payload) == {"user_id", "timestamp", "connection_id", "channels"}, payload
            assert payload["user_id"] == user and payload["connection_id"], payload
            is_now(payload["timestamp"])
            [own] = payload["channels"]
            assert own["channel"] == "notifications" and set(own) == {"channel", "offset", "epoch", "tag"}, own

    def disconnect_by_the_client():
        # R23: a client's goodbye closes with 1000.
        with stage.ws(a, stage.name()) as one:
            one.send(type="disconnect", payload={"reason": "client_initiated"})
            assert closed_with(one) == 1000
            assert not [m for m in one.heard if m["type"] in ("disconnect", "error")], one.heard

    def disconnect_by_the_server():
        with stage.ws(a, stage.name()) as one:
            ident = one.wait_type("connect")["payload"]["connection_id"]
            answer = call(b, "DELETE", f"/connections/{ident}", None, {"X-API-Key": stage.keys.api_key})
            assert answer.status == 204, answer
            payload = one.wait_type("disconnect")["payload"]
            assert payload["code"] == 4403 and payload["reconnect"] is False, payload
            assert set(payload) == {"reason", "code", "reconnect", "retry_after_ms"}, payload
            assert isinstance(payload["reason"], str) and payload["reason"], payload
            assert closed_with(one) == 4403

    check("connect tells user, connection and time", connect_event)
    check("a client's disconnect closes with 1000", disconnect_by_the_client)
    check("the server says disconnect before it closes", disconnect_by_the_server)

    # --- Subscription events
    def subscribe_and_unsubscribe():
        channel = f"conversation:{stage.name()}"
        with stage.ws(a, stage.name()) as one:
            one.send(id="msg_123", type="subscribe", payload={"channel": channel})
            reply = one.wait_type("subscribed")
            assert reply["channel"] == channel and reply["payload"]["channel"] == channel, reply
            assert {"channel", "offset", "epoch", "tag", "recoverable", "recovered", "count", "reason"} == set(
                reply["payload"]), reply
            assert reply["payload"]["recovered"] is False and reply["payload"]["reason"] == "fresh", reply
            stage.publish(b, channel, 1)
            one.wait_payload(1)
            one.send(id="msg_124", type="unsubscribe", payload={"channel": channel})
            gone = one.wait_type("unsubscribed")
            assert gone["channel"] == channel and gone["payload"]["channel"] == channel, gone
            stage.publish(b, channel, 2)
            one.send(type="heartbeat")
            silence(one, lambda m: m["type"] == "heartbeat", lambda m: m.get("payload") == 2)

    def notifications_can_be_left():
        user = stage.name()
        with stage.ws(a, user) as one:
            one.request(type="unsubscribe", payload={"channel": "notifications"})
            stage.to_user(b, user, "notification", {"id": "n1"})
            stage.to_user(b, user, "hint", "still the user's own")
            silence(one, lambda m: m["type"] == "hint", lambda m: m["type"] == "notification")
            one.request(type="subscribe", payload={"channel": "notifications"})
            stage.to_user(b, user, "notification", {"id": "n2"})
            assert one.wait_type("notification")["payload"]["id"] == "n2"

    check("subscribe and unsubscribe take the channel in the payload", subscribe_and_unsubscribe)
    check("notifications are left and taken up again", notifications_can_be_left)

    # --- Notification events
    NOTIFICATION = {"id": "notif_123", "type": "like", "actor_id": "456", "actor_name": "John Doe", "message": "liked",
                    "post_id": "post_789", "read": False, "created_at": "2024-03-01T12:00:00Z"}

    def notification_event():
        # R34: a notification of this shape is a message to the user.
        user = stage.name()
        with stage.ws(a, user) as one, stage.ws(b, user) as two, stage.ws(c, stage.name()) as other:
            for listener in (one, two, other):
                listener.wait_type("connect")
            stage.to_user(c, user, "notification", NOTIFICATION)
            for listener in (one, two):
                heard = listener.wait_type("notification")
                assert heard["channel"] == "notifications" and heard["payload"] == NOTIFICATION, heard
            other.send(type="heartbeat")
            silence(other, lambda m: m["type"] == "heartbeat", lambda m: m["type"] == "notification")

    def stored(user, **more):
        body = {"title": "t", "message": "m", "type": "info", "recipients": [user], **more}
        answer = stage.post(a, "/notifications", body)
        assert answer.status == 201, answer
        return answer.json["id"]

    def reading_one():
        user = stage.name()
        with stage.ws(a, user) as one, stage.ws(b, user) as two:
            one.wait_type("connect"), two.wait_type("connect")
            ident = stored(user)
            for listener in (one, two):
                heard = listener.wait_type("notification")
                assert heard["payload"]["id"] == ident and heard["payload"]["read"] is False, heard
            ack = one.request(type="notification_read", payload={"notification_id": ident})
            assert ack["type"] == "ack" and ack["payload"]["status"] == "success", ack
            heard = two.wait_type("notification_read")
            assert heard["channel"] == "notifications", heard
            assert set(heard["payload"]) == {"notification_id", "read_at"}, heard
            assert heard["payload"]["notification_id"] == ident, heard
            is_now(heard["payload"]["read_at"])
            one.send(type="heartbeat")
            silence(one, lambda m: m["type"] == "heartbeat", lambda m: m["type"] == "notification_read")
            assert stage.user_get(c, user, f"/notifications/unread-count/{user}").json == 0

    def reading_all():
        user = stage.name()
        with stage.ws(a, user) as one, stage.ws(b, user) as two:
            one.wait_type("connect"), two.wait_type("connect")
            for _ in range(3):
                stored(user)
            for _ in range(3):
                one.wait_type("notification"), two.wait_type("notification")
            one.request(type="notification_read_all", payload={})
            heard = two.wait_type("notification_read_all")
            assert set(heard["payload"]) == {"read_at"}, heard
            is_now(heard["payload"]["read_at"])
            count = stage.user_get(b, user, f"/notifications/unread-count/{user}").json
            assert count == 0, count

    def reading_anothers():
        mine, other = stage.name(), stage.name()
        ident = stored(other)
        with stage.ws(a, mine) as one:
            for wrong in (ident, "notif_unknown"):
                error = one.request(type="notification_read", payload={"notification_id": wrong})
                assert error["payload"]["code"] == "NOT_FOUND", error
            error = one.request(type="notification_read", payload={})
            assert error["payload"]["code"] == "INVALID_MESSAGE", error

    check("a notification reaches every connection of its user and nobody else", notification_event)
    check("reading one notification tells the user's other connections", reading_one)
    check("reading all tells the user's other connections", reading_all)
    check("another's notification reads like an unknown one", reading_anothers)

    # --- Messaging events
    def direct_message():
        conversation = f"conversation:{stage.name()}"
        payload = {"id": "msg_123", "conversation_id": "conv_456", "sender_id": "789", "content": "Hello!",
                   "created_at": "2024-03-01T12:00:00Z", "is_read": False,
                   "sender": {"id": "789", "username": "jane", "display_name": "Jane Doe",
                              "avatar_url": "https://example.org/a.png"}}
        with stage.ws(a, stage.name(), conversation) as one, stage.ws(b, stage.name(), conversation) as two:
            stage.publish(c, conversation, payload)
            for listener in (one, two):
                heard = listener.wait_type("message")
                assert heard["payload"] == payload and heard["channel"] == conversation, heard
            # R9: one's own message is heard too.
            one.send(type="message", channel=conversation, payload={"content": "mine"})
            one.wait_payload({"content": "mine"}), two.wait_payload({"content": "mine"})

    def typing():
        ident = stage.name()
        conversation, jane = f"conversation:{ident}", stage.name("jane")
        with stage.ws(a, jane, conversation) as one, stage.ws(b, jane, conversation) as tab, \
                stage.ws(c, stage.name(), conversation) as two:
            for type, is_typing in (("typing_start", True), ("typing_stop", False)):
                # The client's guide sends it without `is_typing`; listeners are shown it with.
                one.send(type=type, channel=conversation,
                         payload={"conversation_id": ident, "user_id": "forged", "username": "jane"})
                for listener in (two, tab):
                    heard = listener.wait_type(type)
                    assert heard["channel"] == conversation and heard["user_id"] == jane, heard
                    assert heard["payload"] == {"conversation_id": ident, "user_id": jane, "username": "jane",
                                                "is_typing": is_typing}, heard
                    assert "offset" not in heard, "typing is never in history (R10)"
            # R10: without a channel it goes to the conversation that the payload names.
            one.send(type="typing_start", payload={"conversation_id": ident, "user_id": jane})
            two.wait_type("typing_start")
            one.send(type="message", channel=conversation, payload="end")
            silence(one, lambda m: m.get("payload") == "end", lambda m: m["type"].startswith("typing"))
            history = stage.get(b, f"/channels/{conversation}/history").json["messages"]
            assert [m["type"] for m in history] == ["message"], history

    def receipts():
        ident = stage.name()
        conversation, reader = f"conversation:{ident}", stage.name()
        with stage.ws(a, reader, conversation) as one, stage.ws(b, stage.name(), conversation) as two:
            whole = {"conversation_id": ident, "message_ids": ["msg_1", "msg_2"], "read_at": "2024-03-01T12:05:00Z"}
            ack = one.request(type="read_receipt", payload=whole)
            assert ack["type"] == "ack", ack
            heard = two.wait_type("read_receipt")
            assert heard["payload"] == {**whole, "user_id": reader} and heard["user_id"] == reader, heard
            assert heard["offset"] == ack["payload"]["data"]["offset"], "receipts are kept (R10)"
            one.send(type="read_receipt", payload={"conversation_id": ident, "message_ids": ["msg_3"]})
            is_now(two.wait_type("read_receipt")["payload"]["read_at"])
            one.send(type="heartbeat")
            silence(one, lambda m: m["type"] == "heartbeat", lambda m: m["type"] == "read_receipt")

    check("a direct message comes as it was sent", direct_message)
    check("typing_start and typing_stop reach the others, with the sender's true id", typing)
    check("read receipts reach the others and are kept", receipts)

    # --- Presence events
    def presence():
        user = stage.name()
        with stage.ws(a, stage.name(), "presence", f"presence:{user}") as watcher:
            def status(wanted):
                for channel in ("presence", f"presence:{user}"):
                    heard = watcher.wait(
                        lambda m: m["type"] == "presence" and m["channel"] == channel
                        and m["payload"]["user_id"] == user and m["payload"]["status"] == wanted,
                        f"{wanted} on {channel}")
                    assert set(heard["payload"]) == {"user_id", "status", "last_seen"}, heard
                    assert RFC3339.match(heard["payload"]["last_seen"]), heard

            def shown():
                return stage.get(c, f"/users/{user}/presence").json

            with stage.ws(b, user) as one:
                status("online")
                for wanted in ("away", "busy", "online"):
                    ack = one.request(type="presence", payload={"status": wanted})
                    assert ack["type"] == "ack", ack
                    status(wanted)
                    assert shown()["status"] == wanted, shown()
                for wrong in ("offline", "flying"):
                    error = one.request(type="presence", payload={"status": wrong})
                    assert error["payload"]["code"] == "INVALID_MESSAGE", error
                assert shown()["connections"] == 1, shown()
            status("offline")
            assert shown()["status"] == "offline" and RFC3339.match(shown()["last_seen"]), shown()
            assert shown()["connections"] == 0, shown()
        assert stage.settings()["presence"]["offline_delay"] == "5s"

    check("presence: online, away, busy, offline, with last_seen", presence)

    # --- Feed events
    def feed():
        with stage.ws(a, stage.name(), "feed:updates") as one:
            for type, payload in (
                ("feed_update", {"type": "new_post", "post_id": "post_123", "user_id": "456", "username": "john",
                                 "action": "created", "created_at": "2024-03-01T12:00:00Z"}),
                ("count_update", {"new_posts_count": 5, "last_update": "2024-03-01T12:00:00Z"}),
            ):
                stage.publish(b, "feed:updates", payload, type=type)
                heard = one.wait_type(type)
                assert heard["payload"] == payload and heard["channel"] == "feed:updates", heard
                error = one.request(type=type, channel="feed:updates", payload=payload)
                assert error["payload"]["code"] == "FORBIDDEN", "R1: these are the server's"

    check("feed_update and count_update come from backends alone", feed)

    # --- System events
    def ack_and_error():
        channel = f"conversation:{stage.name()}"
        with stage.ws(a, stage.name(), channel) as one:
            ack = one.request(type="message", channel=channel, payload={"content": "Hello"})
            payload = ack["payload"]
            assert ack["type"] == "ack" and payload["ack_id"] == ack["ack_id"] == "a1", ack
            assert payload["status"] == "success" and {"id", "offset", "epoch", "tag"} <= set(payload["data"]), ack
            one.send(payload={"no": "type"}, ack_id="ack_9")
            error = one.wait_type("error")
            assert error["ack_id"] == "ack_9", error
            assert set(error["payload"]) == {"code", "message", "details"}, error
            assert error["payload"]["code"] == "INVALID_MESSAGE" and error["payload"]["message"], error
            assert isinstance(error["payload"]["details"], dict), error

    def every_request_is_acked_once():
        # protocol.md 3, R20: exactly one ack or error a request, its own reply before it.
        user, channel = stage.name(), f"conversation:{stage.name()}"
        requests = [
            ("subscribed", {"type": "subscribe", "channel": channel}),
            ("pong", {"type": "ping"}), ("heartbeat", {"type": "heartbeat"}),
            (None, {"type": "message", "channel": channel, "payload": 1}),
            (None, {"type": "typing_start", "channel": channel, "payload": {}}),
            (None, {"type": "read_receipt", "channel": channel, "payload": {}}),
            (None, {"type": "presence", "payload": {"status": "away"}}),
            ("presence:sync", {"type": "presence:join", "channel": "presence:doc"}),
            (None, {"type": "presence:heartbeat", "channel": "presence:doc"}),
            (None, {"type": "presence:leave", "channel": "presence:doc"}),
            (None, {"type": "notification_read_all"}),
            (None, {"type": "auth", "payload": {"token": stage.token(user)}}),
            (None, {"type": "chat:send", "payload": {"channel": "general", "text": "x"}}),
            (None, {"type": "custom:call", "payload": {}}),
            ("unsubscribed", {"type": "unsubscribe", "channel": channel}),
        ]
        with stage.ws(a, user) as one:
            one.wait_type("connect")
            for index, (_, request) in enumerate(requests):
                one.send(ack_id=f"k{index}", requestId=f"r{index}", **request)
            one.send(type="message", channel=channel, payload="end", ack_id="end")
            one.wait(lambda m: m.get("ack_id") == "end", "the end")
            for index, (reply, request) in enumerate(requests):
                acks = [m for m in one.heard if m.get("ack_id") == f"k{index}"]
                assert [m["type"] for m in acks] == ["ack"], (request, acks)
                assert acks[0]["requestId"] == f"r{index}", acks
                own = [m for m in one.heard if m.get("requestId") == f"r{index}" and m["type"] != "ack"]
                assert [m["type"] for m in own] == ([reply] if reply else []), (request, own)

    def heartbeat_event():
        with stage.ws(b, stage.name()) as one:
            one.send(type="heartbeat", payload={"timestamp": "2024-03-01T12:00:00Z"})
            heard = one.wait_type("heartbeat")
            assert set(heard["payload"]) == {"timestamp"}, heard
            is_now(heard["payload"]["timestamp"])

    check("ack and error carry what is documented", ack_and_error)
    check("every request with an ack_id gets exactly one ack", every_request_is_acked_once)
    check("heartbeat answers with the server's time", heartbeat_event)

    # --- Channels
    def channel_types():
        user = stage.name()
        with stage.ws(a, user) as one:
            auto = one.wait_type("connect")["payload"]["channels"]
            assert [entry["channel"] for entry in auto] == ["notifications"], auto
            for channel in ("notifications", "presence", f"presence:{user}", "conversation:conv_456", "feed:updates"):
                ack = one.request(type="subscribe", payload={"channel": channel})
                assert ack["type"] == "ack", (channel, ack)
            for channel, code in (("nowhere", "CHANNEL_NOT_FOUND"), ("nowhere:1", "CHANNEL_NOT_FOUND"),
                                  ("no such", "INVALID_MESSAGE"), ("user:someone", "FORBIDDEN")):
                error = one.request(type="subscribe", payload={"channel": channel})
                assert error["payload"]["code"] == code, (channel, error)

    check("the five kinds of channel exist; notifications alone is automatic", channel_types)

    # --- Polling
    def poll_answer():
        user = stage.name()
        first = stage.poll(a, user, timeout=0).json
        assert first["events"] == [] and first["has_more"] is False and "recovered" not in first, first
        assert isinstance(first["last_poll_id"], int), first
        stage.to_user(b, user, "notification", NOTIFICATION)
        began = time.monotonic()
        answer = stage.poll(c, user, last_poll_id=first["last_poll_id"], timeout=30)
        assert time.monotonic() - began < 10, "what is there is answered at once"
        assert answer.headers["Content-Type"].startswith("application/json"), answer.headers
        body = answer.json
        assert set(body) == {"events", "last_poll_id", "has_more"}, body
        [event] = body["events"]
        assert event["type"] == "notification" and event["channel"] == "notifications", event
        assert event["payload"] == NOTIFICATION and isinstance(event["id"], int), event
        assert event["id"] == body["last_poll_id"] > first["last_poll_id"], body
        is_now(event["timestamp"])
        same = stage.poll(b, user, "POST", {"last_poll_id": first["last_poll_id"]}).json
        assert same == body, "POST answers the same, and a lost answer is repeated (R31)"

    def poll_is_held():
        user = stage.name()
        last = stage.poll(a, user, timeout=0).json["last_poll_id"]
        answers = []
        waiting = threading.Thread(
            target=lambda: answers.append(stage.poll(a, user, last_poll_id=last, timeout=10)))
        waiting.start()
        wait_until("the poll is held", lambda: stage.get(
            a, f"/connections?user_id={user}").json["connections"], 10)
        stage.to_user(c, user, "notification", {"id": "n"})
        waiting.join(20)
        assert answers[0].json["events"][0]["payload"] == {"id": "n"}, answers[0]
        # An empty answer comes when the time is over, not before.
        began = time.monotonic()
        empty = stage.poll(b, user, last_poll_id=answers[0].json["last_poll_id"], timeout=1)
        took = time.monotonic() - began
        assert empty.json["events"] == [] and 0.9 <= took < 10, (took, empty)

    def poll_parameters():
        user = stage.name()
        token = stage.token(user)
        assert stage.poll(a, user, user_id="someone-else").code == "FORBIDDEN"
        assert stage.poll(a, user, "POST", {"user_id": "someone-else"}).status == 403
        for query in ({"user_id": None}, {"last_poll_id": "x"}, {"last_poll_id": -1}, {"timeout": "soon"}):
            answer = stage.poll(a, user, **query)
            assert answer.status == 400 and answer.code == "INVALID_MESSAGE", (query, answer)
        assert call(a, "GET", f"/poll?user_id={user}", base="/api/v1/realtime").code == "MISSING_TOKEN"
        by_query = call(a, "GET", f"/poll?user_id={user}&timeout=0&token={token}", base="/api/v1/realtime")
        assert by_query.status == 200, by_query
        numbers = stage.poll(a, user, last_poll_id=456, timeout=0).json
        assert numbers["recovered"] is False and numbers["events"] == [], "an unknown id starts from now, and says so"

    def missed():
        user = stage.name()
        for index in range(4):
            stage.to_user(a, user, "message" if index % 2 else "notification", index)
        body = stage.poll(b, user, path="/missed", last_sequence=1).json
        assert set(body) == {"messages", "epoch", "recovered", "has_more"}, "R32"
        assert [m["payload"] for m in body["messages"]] == [1, 2, 3], body
        assert [m["offset"] for m in body["messages"]] == [2, 3, 4], body
        assert all(isinstance(m["id"], str) and m["type"] for m in body["messages"]), body
        assert body["recovered"] is True and body["has_more"] is False and body["epoch"], body
        for query in ({}, {"last_sequence": "x"}, {"last_sequence": 0, "user_id": None}):
            assert stage.poll(a, user, path="/missed", **query).status == 400, query
        assert stage.poll(a, user, path="/missed", last_sequence=0, user_id="other").status == 403

    check("a poll answers events, last_poll_id and has_more, GET and POST alike, on any node", poll_answer)
    check("a poll is held until something comes or the time is over", poll_is_held)
    check("a poll's parameters are checked; user_id is the token's", poll_parameters)
    check("missed answers what followed a sequence", missed)

    # --- Client guide
    def send_with_ack():
        channel = "conversation:conv_123"
        with stage.ws(a, stage.name(), channel) as one:
            one.send(type="message", channel=channel, payload={"content": "Hello"}, ack_id="w1")
            ack = one.wait(lambda m: m["type"] == "ack", "an ack")
            # Sending it again under the same id publishes nothing twice.
            one.send(id="m-7", type="message", channel=channel, payload={"content": "twice"}, ack_id="w2")
            one.send(id="m-7", type="message", channel=channel, payload={"content": "twice"}, ack_id="w3")
            second = one.wait(lambda m: m.get("ack_id") == "w2", "an ack")
            third = one.wait(lambda m: m.get("ack_id") == "w3", "an ack")
            assert second["payload"]["data"]["offset"] == third["payload"]["data"]["offset"], (second, third)
            assert ack["payload"]["data"]["offset"] < second["payload"]["data"]["offset"]
            one.send(type="message", channel=channel, payload="end")
            one.wait_payload("end")
            assert one.times({"content": "twice"}) == 1

    def reconnection():
        user, channel = stage.name(), f"conversation:{stage.name()}"
        with stage.ws(a, user, channel) as one:
            stage.publish(b, channel, 0)
            last = one.wait_payload(0)
        for n in range(1, 6):
            stage.publish(b, channel, n)
        with stage.ws(c, user) as again:
            since = {key: last[key] for key in ("offset", "epoch", "tag")}
            again.send(type="subscribe", payload={"channel": channel, "since": since})
            reply = again.wait_type("subscribed")["payload"]
            assert reply["recovered"] is True and reply["count"] == 5, reply
            again.wait_payload(5)
            assert again.payloads() == [1, 2, 3, 4, 5], again.payloads()

    check("sendWithAck is answered, and repeating a message's id publishes it once", send_with_ack)
    check("after a reconnect to another node nothing is missed", reconnection)

    # --- Error codes
    def error_codes():
        user = stage.name()
        seen = {}
        for token in (None, "x", stage.token(user, exp=int(time.time()) - 60)):
            answer = handshake(a, "/ws" + (f"?token={token}" if token else ""))
            seen[answer.code] = answer.status
        bad = stage.post(a, "/publish", {"channel": "conversation:x"})
        seen[bad.code] = bad.status
        gone = stage.post(a, "/publish", {"channel": "nowhere", "type": "m", "payload": 1})
        seen[gone.code] = gone.status
        held = [stage.ws((a, b, c)[index % 3], user) for index in range(10)]
        full = handshake(b, f"/ws?token={stage.token(user)}")
        seen[full.code] = full.status
        for one in held:
            one.close()
        for _ in range(31):
            limited = stage.poll(c, user, timeout=0)
        seen[limited.code] = limited.status
        assert seen == CODES, seen

    check("every error code comes with its HTTP status", error_codes)

    # --- Rate limiting
    def limits():
        shown = stage.settings()["limits"]
        assert (shown["messages_per_second"], shown["connections_per_user"], shown["polls_per_minute"]) == (
            "100", "10", "30"), shown

    def rate_headers():
        user = stage.name()

        def numbers(answer):
            return [int(answer.headers[f"X-RateLimit-{name}"]) for name in ("Limit", "Remaining", "Reset")]

        for polled in range(2):
            for answer in (stage.poll(a, user, timeout=0), stage.poll(b, user, "POST", {"timeout": 0})):
                limit, remaining, reset = numbers(answer)
                assert limit == 30 and 26 <= remaining <= 29 and 0 <= reset - time.time() <= 61, answer.headers
        assert numbers(stage.poll(a, user, path="/missed", last_sequence=0))[0] == 30
        # Every answer of a limited endpoint, refusals included (protocol.md 5).
        assert numbers(stage.poll(a, user, last_poll_id="x"))[0] == 30
        assert numbers(stage.poll(a, user, user_id="other"))[0] == 30
        for path, headers in (("/poll", {}), ("/poll/missed", {"Authorization": "Bearer x"})):
            nobody = call(a, "GET", path, None, headers, base="/api/v1/realtime")
            assert nobody.status == 401 and numbers(nobody)[:2] == [30, 30], nobody.headers
        message = {"channel": "chat", "type": "message", "payload": 1}
        limit, remaining, reset = numbers(stage.post(a, "/publish", message))
        assert limit == 1000 and 990 <= remaining <= 1000 and 0 <= reset - time.time() <= 3
        assert numbers(stage.post(a, "/publish/batch", {"messages": [message]}))[0] == 1000
        assert numbers(stage.post(a, f"/users/{user}/messages", {"type": "m", "payload": 1}))[0] == 1000
        refused = stage.user_post(a, user, "/publish", {**message, "channel": "topic:x"})
        assert refused.status == 403 and numbers(refused)[0] == 1000, refused

    check("the documented limits are the defaults", limits)
    check("X-RateLimit-Limit, -Remaining and -Reset stand on every answer of polls and publishing", rate_headers)

