"""Who comes back hears exactly what was missed: by position, by cursor, after kill -9."""

import socket

from harness import ask_in_pieces, wait_until


def facts(check, cluster):
    a, b, c = cluster.nodes

    def position(message):
        return {key: message[key] for key in ("offset", "epoch", "tag")}

    def resume(listener, channel, since):
        listener.send(type="subscribe", channel=channel, payload={"since": since})
        return listener.wait_type("subscribed")["payload"]

    def position_recovers_on_another_node():
        with cluster.ws(a, "ann", "room:r1") as one:
            cluster.publish(b, "room:r1", 0)
            since = position(one.wait_payload(0))
        for n in range(1, 151):
            cluster.publish(b, "room:r1", n)
        with cluster.ws(c, "ann") as again:
            answer = resume(again, "room:r1", since)
            assert answer["recovered"] is True and answer["offset"] == since["offset"], answer
            cluster.publish(a, "room:r1", 151)
            again.wait_payload(151)
            assert again.payloads() == list(range(1, 152)), again.payloads()

    def cursor_recovers_all_channels_of_a_stream():
        with cluster.sse(a, "ben", "room:r2", "room:r3") as one:
            cluster.publish(b, "room:r2", "x0"), cluster.publish(b, "room:r3", "y0")
            one.wait(lambda _: one.times("x0") and one.times("y0"), "both")
            cursor = one.heard[-1]["_id"]
        assert cursor, "no id: on the stream"
        for n in range(1, 21):
            cluster.publish(b, "room:r2", f"x{n}"), cluster.publish(c, "room:r3", f"y{n}")
        with cluster.sse(c, "ben", "room:r2", "room:r3", last_event_id=cursor) as again:
            cluster.publish(a, "room:r2", "x-end"), cluster.publish(a, "room:r3", "y-end")
            while not (again.times("x-end") and again.times("y-end")):
                again.wait(lambda m: m.get("payload") in ("x-end", "y-end"), "the ends")
            for letter in "xy":
                heard = [p for p in again.payloads() if p.startswith(letter)]
                assert heard == [f"{letter}{n}" for n in range(1, 21)] + [f"{letter}-end"], heard

    def more_than_a_queue_holds_is_recovered():
        # A queue holds 256 KiB; what answers the handshake must not wait until all of this is queued.
        texts = [f"{n} {'x' * 8000}" for n in range(100)]
        with cluster.sse(a, "lea", "room:r10") as one:
            cluster.publish(b, "room:r10", "first")
            one.wait_payload("first")
            cursor = one.heard[-1]["_id"]
        for n in (0, 50):
            messages = [{"channel": "room:r10", "type": "message", "payload": text} for text in texts[n:n + 50]]
            assert cluster.post(b, "/publish/batch", {"messages": messages}).status == 200
        for node in (b, c):
            with cluster.sse(node, "lea", "room:r10", last_event_id=cursor) as again:
                again.wait_payload(texts[-1])
                assert again.payloads() == texts, len(again.payloads())
            with cluster.ws(node, "lea", "room:r10", since=cursor) as again:
                again.wait_payload(texts[-1])
                assert again.payloads() == texts, len(again.payloads())
        with ask_in_pieces(b, f"/ws?token={cluster.token('lea')}&channel=room:r10&since={cursor}") as connection:
            heard = b""
            while texts[-1].encode() not in heard:
                more = connection.recv(65536)
                assert more, heard[-300:]
                heard += more
            assert all(heard.count(b'"payload":"' + text.encode()) == 1 for text in texts)
        # Who goes away before reading it stays nowhere.
        for path in ("/api/realtime/events", "/ws"):
            with socket.create_connection(("127.0.0.1", b.port)) as connection:
                connection.sendall(f"GET {path}?token={cluster.token('max')}&channel=room:r10&since={cursor} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until("no connection of max", lambda: not cluster.get(b, "/connections?user_id=max").json["connections"], 60)

    def a_cursor_is_answered_once():
        for profile in ("social", "uno", "dnr", "excore"):
            with cluster.sse(a, "ivo", "room:r9") as one:
                cluster.publish(b, "room:r9", profile)
                one.wait_payload(profile)
                cursor = one.heard[-1]["_id"]
            with cluster.ws(c, "ivo", "room:r9", since=cursor, profile=profile) as again:
                again.request(type="ping")
                told = [(m["channel"], m["payload"]["recovered"]) for m in again.heard if m.get("type") == "subscribed"]
                assert sorted(told) == [("notifications", True), ("room:r9", True)], (profile, told)

    def own_stream_is_replayed_once():
        def tell(n):
            answer = cluster.post(b, "/users/jon/messages", {"type": "notification" if n % 2 else "hint", "payload": n})
            assert answer.status == 200, answer

        def heard_by(listener):
            cluster.post(a, "/users/jon/messages", {"type": "end", "payload": "end"})
            listener.wait_payload("end")
            return [m["payload"] for m in listener.heard if m.get("type") in ("notification", "hint")]
        with cluster.sse(a, "jon", "user:jon") as one:
            tell(1), tell(2)
            since, cursor = {}, None
            for n in (1, 2):
                heard = one.wait_payload(n)
                since[heard["channel"]], cursor = position(heard), heard["_id"]
        for n in range(3, 7):
            tell(n)
        # Named or not, it is the stream that every connection has.
        for node, listen in ((b, cluster.sse), (c, cluster.ws)):
            more = {"last_event_id": cursor} if listen == cluster.sse else {"since": cursor}
            with listen(node, "jon", "notifications", "user:jon", **more) as again:
                assert heard_by(again) == [3, 4, 5, 6], (listen, again.heard)
        with cluster.ws(c, "jon") as again:
            for channel in ("notifications", "user:jon"):
                answer = again.request(type="subscribe", channel=channel, payload={"since": since[channel]})
                assert answer["payload"]["data"]["recovered"] is True, answer
            # Offset 2 lies behind the first label's position.
            assert heard_by(again)[:5] == [2, 3, 4, 5, 6] and again.times(4) == again.times(5) == 1, again.heard
            forged = again.request(type="subscribe", channel="user:jon", payload={"since": {**since["user:jon"], "tag": "AAAAAAAA"}})
            assert forged["payload"]["data"]["reason"] == "fork", forged

    def entity_event_is_replayed_once():
        def change(n):
            assert cluster.post(b, "/entities/Page/7/events", {"action": "updated", "data": {"n": n}}).status == 200
        channels = ("entity:Page", "entity:Page:7")
        with cluster.sse(a, "kim", *channels) as one:
            change(1)
            cursor = one.wait_type("entity:updated")["_id"]
        change(2)
        with cluster.sse(c, "kim", *channels, last_event_id=cursor) as again:
            change(3)
            again.wait_payload({"n": 3})
            assert again.payloads("entity:updated") == [{"n": 2}, {"n": 3}], again.heard

    def forged_tag_is_told():
        with cluster.ws(a, "cat", "room:r4") as one:
            cluster.publish(b, "room:r4", 0), cluster.publish(b, "room:r4", 1)
            since = position(one.wait_payload(0))
        with cluster.ws(b, "cat") as again:
            answer = resume(again, "room:r4", {**since, "tag": "A" * len(since["tag"])})
            assert answer["recovered"] is False and answer.get("reason") == "fork", answer

    def foreign_epoch_is_told():
        with cluster.ws(a, "dan") as one:
            cluster.publish(b, "room:r5", 0)
            answer = resume(one, "room:r5", {"offset": 1, "epoch": "another"})
            assert answer["recovered"] is False, answer

    def trimmed_history_is_told():
        with cluster.ws(a, "eve", "topic:r6") as one:
            cluster.publish(b, "topic:r6", 0)
            since = position(one.wait_payload(0))
        messages = [{"channel": "topic:r6", "type": "message", "payload": n} for n in range(300)]
        assert cluster.post(b, "/publish/batch", {"messages": messages}).status == 200
        with cluster.ws(c, "eve") as again:
            answer = resume(again, "topic:r6", since)
            assert answer["recovered"] is False and answer["reason"] == "trimmed" and answer["offset"] == 301, answer
            cluster.publish(b, "topic:r6", "live")
            again.wait_payload("live")
            assert again.payloads() == ["live"], again.payloads()

    def killed_node_loses_nothing():
        with cluster.ws(a, "fay", "room:r7") as one, cluster.ws(b, "gus", "room:r7") as witness:
            cluster.publish(c, "room:r7", 0)
            since = position(one.wait_payload(0))
            a.kill()
            one.wait_closed()
            for n in range(1, 51):
                cluster.publish(c if n % 2 else b, "room:r7", n)
            with cluster.ws(c, "fay") as again:
                answer = resume(again, "room:r7", since)
                assert answer["recovered"] is True, answer
                cluster.publish(b, "room:r7", 51)
                again.wait_payload(51)
                assert again.payloads() == list(range(1, 52)), again.payloads()
            witness.wait_payload(51)
            assert witness.payloads() == list(range(52)), witness.payloads()

    def killed_node_comes_back():
        a.start()
        wait_until("the node is ready again", a.ready, process=a)
        with cluster.ws(a, "hal", "room:r8") as one:
            cluster.publish(b, "room:r8", "welcome back")
            one.wait_payload("welcome back")

    check("a position recovers 150 messages on another node, in order, once",
          position_recovers_on_another_node)
    check("Last-Event-ID recovers all channels of a stream on another node",
          cursor_recovers_all_channels_of_a_stream)
    check("more than a queue holds is recovered by every way in", more_than_a_queue_holds_is_recovered)
    check("every channel of a cursor is answered by one subscribed, in every profile", a_cursor_is_answered_once)
    check("a user's own stream comes once, whichever of its names it is resumed under", own_stream_is_replayed_once)
    check("an entity event comes once to who resumes both of its channels", entity_event_is_replayed_once)
    check("a position with another tag is told to be a fork", forged_tag_is_told)
    check("a position of another epoch is not recovered silently", foreign_epoch_is_told)
    check("trimmed history is told", trimmed_history_is_told)
    check("kill -9 of a node: its client recovers exactly through another", killed_node_loses_nothing)
    check("a killed node that starts again serves", killed_node_comes_back)
