"""What is told to any node is heard on every node: all kinds of delivery, all kinds of listener."""

from harness import SseListener, WsListener, ask_in_pieces, wait_until


def facts(check, cluster):
    a, b, c = cluster.nodes

    def three_listeners_hear_once():
        with cluster.ws(a, "ann", "chat") as one, cluster.sse(b, "ben", "chat") as two, \
                cluster.ws(c, "cat", "chat", codec="carillon.msgpack") as three:
            for at, node in enumerate(cluster.nodes):
                cluster.publish(node, "chat", {"n": at, "via": node.name})
                cluster.publish(node, "chat", {"end": at})
                for listener in (one, two, three):
                    listener.wait_payload({"end": at})
                    times = listener.times({"n": at, "via": node.name})
                    assert times == 1, f"{type(listener).__name__} heard it {times} times"

    def user_message_carries_its_user():
        with cluster.ws(a, "ann", "room:1") as one, cluster.ws(b, "ben", "room:1") as two, \
                cluster.sse(c, "cat", "room:1") as three:
            ack = one.request(type="message", channel="room:1", payload="hi", user_id="forged")
            assert ack["type"] == "ack", ack
            data = ack["payload"]["data"]
            assert {"id", "offset", "epoch", "tag"} <= set(data), data
            for listener in (two, three):
                heard = listener.wait_payload("hi")
                assert heard["user_id"] == "ann", heard
                assert heard["id"] == data["id"] and heard["offset"] == data["offset"], heard

    def to_user_on_two_nodes():
        with cluster.ws(a, "dan") as one, cluster.ws(b, "dan") as two, cluster.ws(b, "eve") as other:
            for listener in (one, two, other):
                listener.wait_type("connect")
            answer = cluster.post(c, "/users/dan/messages", {"type": "hint", "payload": "for dan"})
            assert answer.status == 200, answer
            one.wait_payload("for dan"), two.wait_payload("for dan")
            cluster.post(c, "/users/eve/messages", {"type": "hint", "payload": "for eve"})
            other.wait_payload("for eve")
            assert other.times("for dan") == 0

    def to_connection_on_another_node():
        with cluster.ws(a, "fay") as one, cluster.ws(a, "fay") as other:
            ident = one.wait_type("connect")["payload"]["connection_id"]
            other.wait_type("connect")
            path = f"/connections/{ident}/messages"
            answer = cluster.post(b, path, {"type": "hint", "payload": "only you"})
            assert answer.status == 200 and answer.json["delivered"] is True, answer
            one.wait_payload("only you")
            cluster.post(b, "/users/fay/messages", {"type": "hint", "payload": "both"})
            other.wait_payload("both")
            assert other.times("only you") == 0

    def broadcast_reaches_all():
        with cluster.ws(a, "gus") as one, cluster.sse(b, "hal") as two, cluster.ws(c, "ivy") as three:
            one.wait_type("connect"), three.wait_type("connect"), two.wait_type("connect")
            answer = cluster.post(b, "/broadcast", {"type": "news", "payload": {"all": 1}})
            assert answer.status == 200, answer
            for listener in (one, two, three):
                listener.wait_payload({"all": 1})

            def counted():
                # A node that does not answer in time is heard of, but not counted.
                answer = cluster.post(b, "/broadcast", {"type": "again", "payload": {}})
                return answer.status == 200 and answer.json["recipients"] >= 3
            wait_until("all three are counted", counted)

    def entity_event_once_for_both_channels():
        with cluster.ws(a, "jan", "entity:Task", "entity:Task:7") as both, \
                cluster.ws(b, "kim", "entity:Task") as name_only:
            path = "/entities/Task/7/events"
            for action in ("created", "updated"):
                answer = cluster.post(c, path, {"action": action, "data": {"do": action}})
                assert answer.status == 200, answer
            for listener in (both, name_only):
                listener.wait_payload({"do": "updated"})
                created = [m for m in listener.heard if m["type"] == "entity:created"]
                assert len(created) == 1, created

    def repeated_key_publishes_once():
        with cluster.ws(a, "lea", "room:2") as one:
            first = cluster.publish(b, "room:2", "once", id="i1", idempotency_key="k1")
            assert not first["duplicate"] and first["id"] == "i1", first
            # Either of the two makes it a repetition.
            for more in ({"idempotency_key": "k1"}, {"id": "i2", "idempotency_key": "k1"}, {"id": "i1", "idempotency_key": "k2"}, {"id": "i1"}):
                again = cluster.publish(c, "room:2", "once", **more)
                assert again == {**first, "duplicate": True}, (first, again)
            cluster.publish(b, "room:2", "end")
            one.wait_payload("end")
            assert one.times("once") == 1

    def order_is_kept():
        with cluster.ws(a, "max", "room:3") as one, cluster.sse(c, "ned", "room:3") as two:
            messages = [{"channel": "room:3", "type": "message", "payload": n} for n in range(500)]
            answer = cluster.post(b, "/publish/batch", {"messages": messages})
            assert answer.status == 200 and len(answer.json["results"]) == 500, answer
            for listener in (one, two):
                listener.wait_payload(499)
                assert listener.payloads() == list(range(500))

    def excluded_do_not_hear():
        with cluster.ws(a, "oda", "room:4") as one, cluster.ws(b, "pam", "room:4") as two:
            cluster.publish(c, "room:4", "not oda", exclude={"users": ["oda"]})
            cluster.publish(c, "room:4", "all")
            one.wait_payload("all"), two.wait_payload("all")
            assert one.times("not oda") == 0 and two.times("not oda") == 1

    def an_open_connection_hears_from_then_on():
        # Not waiting for a welcome: the head of the answer says that the query's channels are heard.
        for n in range(20):
            for kind in (SseListener, WsListener):
                channel = f"chat.at-once-{n}-{kind.__name__}"
                with kind(b, cluster.token("ann"), ["room:1", channel, "news"]) as ann:
                    cluster.publish(a, channel, "early")
                    ann.wait_payload("early")

    def a_handshake_in_pieces_is_one_too():
        def ask(user, channel):
            return ask_in_pieces(b, f"/ws?token={cluster.token(user)}&channel={channel}")

        def read(connection, what):
            heard = b""
            while what not in heard:
                more = connection.recv(65536)
                assert more, heard
                heard += more

        for n in range(20):
            with ask("pieces", f"chat.pieces-{n}") as connection:
                read(connection, b"\r\n\r\n")
                cluster.publish(a, f"chat.pieces-{n}", "early")
                read(connection, b'"early"')
            # Whoever goes away in the middle of it stays nowhere.
            ask("hasty", "news").close()
        for user in ("pieces", "hasty"):
            wait_until(f"no connection of {user}", lambda u=user: not cluster.get(
                b, f"/connections?user_id={u}").json["connections"], 60)

    def typing_is_relayed_but_not_back():
        with cluster.ws(a, "quy", "room:5") as one, cluster.ws(b, "ray", "room:5") as two:
            two.wait_type("connect")
            one.send(type="typing_start", channel="room:5", payload={})
            heard = two.wait_type("typing_start")
            assert heard.get("user_id") == "quy", heard
            one.request(type="message", channel="room:5", payload="end")
            assert not [m for m in one.heard if m["type"] == "typing_start"]

    def unsubscribed_hears_no_more():
        with cluster.ws(a, "sam", "room:6", "room:7") as one:
            reply = one.request(type="unsubscribe", channel="room:6")
            assert reply["type"] == "ack", reply
            cluster.publish(b, "room:6", "gone"), cluster.publish(b, "room:7", "end")
            one.wait_payload("end")
            assert one.times("gone") == 0

    def live_channels_are_counted():
        with cluster.ws(a, "tea", "room:8"), cluster.ws(b, "uma", "room:8"):
            def counted():
                answer = cluster.get(c, "/channels/room:8")
                return answer.status == 200 and answer.json["subscribers"] == 2
            wait_until("two subscribers are counted on a third node", counted)

    def every_profile_greets_as_documented():
        with cluster.ws(a, "vic", path="/ws") as one:
            assert one.wait(lambda m: True, "welcome")["type"] == "connect"
        with cluster.ws(b, "vic", path="/api/realtime/ws") as two:
            assert set(two.wait(lambda m: True, "welcome")) == {"type", "connection_id"}
        with cluster.ws(c, "vic", path="/") as three:
            first = three.wait(lambda m: True, "welcome")
            assert first["type"] == "connected", first
            assert first["payload"]["message"] == "Connected to WebSocket server", first

    check("three listeners on three nodes hear a publish on any node once", three_listeners_hear_once)
    check("a user's message is heard on the other nodes with its user_id",
          user_message_carries_its_user)
    check("a message to a user reaches that user's connections on two nodes", to_user_on_two_nodes)
    check("a message to a connection reaches it from another node", to_connection_on_another_node)
    check("a broadcast reaches the connections of all nodes", broadcast_reaches_all)
    check("an entity event is heard once by who has both channels",
          entity_event_once_for_both_channels)
    check("a repeated idempotency key publishes once, whatever the node", repeated_key_publishes_once)
    check("a batch of 500 keeps its order on other nodes", order_is_kept)
    check("excluded users do not hear a publish", excluded_do_not_hear)
    check("who is told that a connection is open hears what is published then on the query's channels",
          an_open_connection_hears_from_then_on)
    check("a WebSocket handshake that comes in pieces opens the same", a_handshake_in_pieces_is_one_too)
    check("typing reaches the others and not the sender", typing_is_relayed_but_not_back)
    check("who unsubscribed hears no more", unsubscribed_hears_no_more)
    check("subscribers are counted over the cluster", live_channels_are_counted)
    check("each path greets in its profile", every_profile_greets_as_documented)
