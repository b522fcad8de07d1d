"""Live connections over three nodes, all transports: listed, looked at, reached with true counts, disconnected."""

import json
import threading

from events import EventStream
from harness import call, wait_until


def facts(check, cluster):
    a, b, c = cluster.nodes
    used = iter(range(1_000_000))

    def name(stem):
        return f"{stem}-c{next(used)}"

    def listed(node, query):
        """All pages, two at a time."""
        found, cursor = [], ""
        while True:
            answer = cluster.get(node, f"/connections?limit=2&{query}{cursor}")
            assert answer.status == 200, answer
            found += answer.json["connections"]
            if answer.json["next"] is None:
                return found
            cursor = f"&cursor={answer.json['next']}"

    class Mixed:
        """One user on all nodes by all transports: two WebSockets, two event streams, a held poll."""

        def __init__(self, user, channel):
            self.user, self.channel = user, channel

        def __enter__(self):
            self.sockets = [cluster.ws(a, self.user, self.channel), cluster.ws(b, self.user)]
            self.streams = [EventStream(node, cluster.token(self.user), [self.channel]) for node in (b, c)]
            ids = [socket.wait_type("connect")["payload"]["connection_id"] for socket in self.sockets]
            ids += [json.loads(s.next("connection")["data"])["connection_id"] for s in self.streams]
            self.ids = ids
            self.polled = []
            headers = {"Authorization": f"Bearer {cluster.token(self.user)}"}
            path = f"/api/v1/realtime/poll?user_id={self.user}&timeout=25"

            def poll():
                self.polled.append(call(c, "GET", path, None, headers, base=""))
            self.poll = threading.Thread(target=poll)
            self.poll.start()
            wait_until("five connections are listed",
                       lambda: len(listed(a, f"user_id={self.user}")) == 5, 15)
            return self

        def __exit__(self, *_):
            for listener in self.sockets:
                listener.close()
            for stream in self.streams:
                stream.__exit__()
            call(a, "DELETE", f"/users/{self.user}/connections", None, {"X-API-Key": cluster.keys.api_key})
            self.poll.join(30)

    def listed_by_any_node_with_filters():
        user, channel = name("ann"), f"room:{name('x')}"
        with Mixed(user, channel) as mixed:
            for node in cluster.nodes:
                found = listed(node, f"user_id={user}")
                assert [one["id"] for one in found] == sorted(one["id"] for one in found)
                assert set(mixed.ids) < {one["id"] for one in found}
                assert sorted(one["transport"] for one in found) == ["poll", "sse", "sse", "websocket", "websocket"]
                assert {one["id"] for one in listed(node, f"user_id={user}&transport=sse")} == set(mixed.ids[2:])
                on_channel = listed(node, f"channel={channel}")
                assert {one["id"] for one in on_channel} == {mixed.ids[0], *mixed.ids[2:]}, on_channel
                for ident, held_by in zip(mixed.ids, (a, b, b, c)):
                    one = cluster.get(node, f"/connections/{ident}").json
                    assert {"id", "user_id", "transport", "profile", "node", "connected_at", "channels"} <= set(one), one
                    assert (one["node"], one["user_id"]) == (held_by.name, user), one
                for unknown in ("connection-123", mixed.ids[0][:-1] + "x", "0" * 12 + "-" + "0" * 16):
                    assert cluster.get(node, f"/connections/{unknown}").status == 404, unknown

    def messages_reach_whom_they_are_for_with_counts():
        user = name("ben")
        with Mixed(user, f"room:{name('x')}") as mixed:
            listeners = [*mixed.sockets, *mixed.streams]

            def seen(listener, text):
                if listener in mixed.sockets:
                    return listener.wait_payload(text)["id"]
                while (event := listener.next("note"))["data"] != text:
                    pass
                return event["data"]
            for node in cluster.nodes:
                for ident, listener in zip(mixed.ids, listeners):
                    text = name("to-connection")
                    answer = cluster.post(node, f"/connections/{ident}/messages", {"type": "note", "payload": text})
                    assert answer.json == {"delivered": True}, answer
                    seen(listener, text)
            text = name("to-user")
            assert cluster.post(c, f"/users/{user}/messages", {"type": "note", "payload": text}).status == 200
            for listener in listeners:
                seen(listener, text)
            mixed.poll.join(30)
            assert [e["payload"] for e in mixed.polled[0].json["events"]] == [text], mixed.polled[0]
            # Nobody but these is connected now, save what other facts left to linger: count them first.
            live = len(listed(a, ""))
            text = name("to-all")
            answer = cluster.post(b, "/broadcast", {"type": "note", "payload": text})
            assert answer.json == {"recipients": live}, (answer.json, live)
            for listener in listeners:
                seen(listener, text)
            answer = cluster.post(a, "/broadcast", {"type": "note", "payload": name("to-few"), "exclude": {
                "users": [], "connections": mixed.ids[:3]}})
            assert answer.json == {"recipients": live - 3}, (answer, live)
            answer = cluster.post(a, "/broadcast", {"type": "note", "payload": name("to-others"),
                                                    "exclude": {"users": [user]}})
            # Whose poll was answered keeps a seat for the next one.
            mine = len(listed(a, f"user_id={user}"))
            assert answer.json == {"recipients": live - mine}, (answer.json, live, mine)
            # Only event streams count for an event.
            event = {"event": "note", "data": name("event"), "recipients": mixed.ids}
            assert cluster.post(c, "/events/broadcast", event).body == b"2"
            for stream in mixed.streams:
                assert seen(stream, event["data"])
            gone = cluster.post(b, "/connections/connection-123/messages", {"type": "note", "payload": 1})
            assert gone.status == 404 and gone.code == "NOT_FOUND", gone

    def disconnected_from_any_node():
        user = name("cat")
        with Mixed(user, f"room:{name('x')}") as mixed:
            key = {"X-API-Key": cluster.keys.api_key}
            answer = call(c, "DELETE", f"/connections/{mixed.ids[0]}", None, key)
            assert answer.status == 204 and answer.body == b"", answer
            told = mixed.sockets[0].wait_type("disconnect")["payload"]
            assert told["code"] == 4403, told
            mixed.sockets[0].wait_closed()
            assert mixed.sockets[0].socket.protocol.close_rcvd.code == 4403
            wait_until("it is gone", lambda: cluster.get(b, f"/connections/{mixed.ids[0]}").status == 404)
            answer = call(a, "DELETE", f"/users/{user}/connections", None, key)
            assert answer.json == {"disconnected": 4}, answer
            mixed.sockets[1].wait_closed()
            for stream in mixed.streams:
                data = json.loads(stream.next("disconnect")["data"])
                assert data["code"] == 4403, data
            mixed.poll.join(30)
            wait_until("none is left", lambda: listed(b, f"user_id={user}") == [])
            assert call(b, "DELETE", f"/users/{user}/connections", None, key).json == {"disconnected": 0}

    check("connections are listed, filtered and shown by any node", listed_by_any_node_with_filters)
    check("messages to a connection, a user and all reach every transport, truly counted",
          messages_reach_whom_they_are_for_with_counts)
    check("connections are ended from any node, on every transport", disconnected_from_any_node)
