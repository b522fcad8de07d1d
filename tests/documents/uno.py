"""The uno document from top to bottom, as a reader of it would try it: each example body sent, each example answer
compared field by field, each call on another node. What a document cannot know (ids, times) is checked by its kind.

Facts take a stage (stage.py): one embedded node, or three over Redis.
"""

import json
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "stranger"))
from events import EventStream  # noqa: E402
from harness import WsListener, call, wait_until  # noqa: E402
from stage import QUICK  # noqa: E402

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")

NOTIFICATION = {
    "title": "New message", "message": "You have a new message from Jane",
    "recipients": ["user-456", "user-789"], "type": "message", "priority": "normal",
    "sender_id": "user-123", "resource_type": "message", "resource_id": "message-789",
    "actions": [{"label": "View", "action": "view", "data": {"id": "message-789"}},
                {"label": "Reply", "action": "reply", "data": {"id": "message-789"}}],
    "metadata": {"thread_id": "thread-123"}, "expires_at": "2125-05-16T10:30:00Z",
}
RESOURCE = {
    "user_id": "user-456", "resource_id": "post-789", "resource_type": "post",
    "labels": ["important", "post-updates"], "metadata": {"notification_channel": "email"},
    "expires_at": "2125-05-16T10:30:00Z",
}
TOPIC = {
    "user_id": "user-456", "topic": "new-posts", "labels": ["news", "updates"],
    "metadata": {"notification_channel": "in-app"}, "expires_at": "2125-05-16T10:30:00Z",
    "payload_filter": {"category": "tech"},
}
EVENT = {"event": "update", "data": "{\"resource_id\":\"post-789\",\"action\":\"update\"}",
         "priority": "normal", "retry": 3000, "comment": "Resource update event"}


def is_id(value):
    return isinstance(value, str) and 0 < len(value) <= 256


def is_time(value):
    return isinstance(value, str) and TIME.match(value)


def compare(answer, example):
    """Field by field: a function of the example judges, anything else must be equal. No field more, none less."""
    assert isinstance(answer, dict), answer
    assert set(answer) == set(example), f"fields differ: {sorted(set(answer) ^ set(example))}"
    for field, wanted in example.items():
        seen = answer[field]
        fits = wanted(seen) if callable(wanted) else seen == wanted
        assert fits, f"{field}: {seen!r}, the document has {wanted!r}"


def stored(sent, **differs):
    """The document's answer to a created notification: no expires_at, and what the server adds."""
    answer = {k: v for k, v in sent.items() if k != "expires_at"}
    return {**answer, "id": is_id, "status": "delivered", "created_at": is_time, "delivered_at": is_time,
            "read_by": [], **differs}


def subscribed(sent, kind, **differs):
    nulls = {"resource_id": None, "resource_type": None, "topic": None, "query": None}
    sent = {k: v for k, v in sent.items() if k != "payload_filter"}
    return {**nulls, **sent, "id": is_id, "type": kind, "status": "active", "created_at": is_time,
            "updated_at": is_time, **differs}


class Reader:
    """Somebody with the document, a key, and any of the nodes."""

    def __init__(self, cluster):
        self.cluster, self.turn = cluster, 0

    @property
    def node(self):
        """Every call goes to the next node."""
        self.turn += 1
        return self.cluster.nodes[self.turn % len(self.cluster.nodes)]

    def call(self, method, path, body=None, user=None):
        headers = ({"Authorization": f"Bearer {self.cluster.token(user)}"} if user
                   else {"X-API-Key": self.cluster.keys.api_key})
        return call(self.node, method, path, body, headers)

    def ok(self, status, method, path, body=None, user=None):
        answer = self.call(method, path, body, user)
        assert answer.status == status, f"{method} {path}: {answer}"
        return answer

    def forget(self):
        """Leaves nothing of an earlier reader (the document's names are fixed)."""
        for user in ("user-456", "user-789"):
            while found := self.ok(200, "GET", f"/notifications?user_id={user}&page_size=100").json:
                for one in found:
                    self.call("DELETE", f"/notifications/{one['id']}")
            for one in self.ok(200, "GET", f"/subscriptions?user_id={user}&page_size=100").json:
                self.call("DELETE", f"/subscriptions/{one['id']}")

    def ws(self, user):
        """A WebSocket as the document opens it."""
        return WsListener(self.node, self.cluster.token(user), path="/api/realtime/ws")


def facts(check, cluster):
    reader = Reader(cluster)
    reader.forget()
    made = {}

    # Notification endpoints

    def create_notification():
        with reader.ws("user-456") as listener:
            listener.wait_type("subscribed")
            answer = reader.ok(201, "POST", "/notifications", NOTIFICATION)
            # The document's answer is `delivered` already; ours may say `pending` (R33).
            compare(answer.json, stored(NOTIFICATION, status=lambda s: s in ("pending", "delivered"),
                                        delivered_at=lambda at: at is None or is_time(at)))
            made["id"] = answer.json["id"]
            pushed = listener.wait_type("notification")
            assert pushed["payload"]["id"] == made["id"], pushed

        def delivered():
            return reader.call("GET", f"/notifications/{made['id']}").json["status"] == "delivered"
        wait_until("the status is delivered", delivered)

    def get_user_notifications():
        path = "/notifications?user_id=user-456&status=delivered&page=1&page_size=20"
        answer = reader.ok(200, "GET", path)
        assert len(answer.json) == 1 and answer.headers["X-Total-Count"] == "1", answer
        compare(answer.json[0], stored(NOTIFICATION, id=made["id"]))
        # The document asks for pending ones: user-789 was not connected, and has none of its own yet.
        pending = reader.ok(200, "GET", "/notifications?user_id=user-789&status=pending&page=1&page_size=20")
        assert [one["id"] for one in pending.json] == [made["id"]], pending
        assert reader.ok(200, "GET", "/notifications?user_id=user-456&status=pending").json == []

    def get_notification():
        answer = reader.ok(200, "GET", f"/notifications/{made['id']}")
        compare(answer.json, stored(NOTIFICATION, id=made["id"]))

    def unread_count():
        assert reader.ok(200, "GET", "/notifications/unread-count/user-456").body == b"1"

    def mark_read():
        path = f"/notifications/{made['id']}/mark-read?user_id=user-456"
        for _ in range(2):
            answer = reader.ok(200, "POST", path)
            compare(answer.json, stored(NOTIFICATION, id=made["id"], read_by=["user-456"]))
        assert reader.ok(200, "GET", "/notifications/unread-count/user-456").body == b"0"
        assert reader.ok(200, "GET", "/notifications/unread-count/user-789").body == b"1"

    # Subscription endpoints

    def create_resource_subscription():
        answer = reader.ok(201, "POST", "/subscriptions/resource", RESOURCE)
        compare(answer.json, subscribed(RESOURCE, "resource"))
        made["resource"] = answer.json

    def create_topic_subscription():
        answer = reader.ok(201, "POST", "/subscriptions/topic", TOPIC)
        compare(answer.json, subscribed(TOPIC, "topic"))
        made["topic"] = answer.json

    def get_user_subscriptions():
        answer = reader.ok(200, "GET", "/subscriptions?user_id=user-456&status=active&page=1&page_size=20")
        assert answer.headers["X-Total-Count"] == "2", answer.headers
        # Both may be of one millisecond.
        by_id = [sorted(subscriptions, key=lambda one: one["id"])
                 for subscriptions in (answer.json, [made["resource"], made["topic"]])]
        assert by_id[0] == by_id[1], answer

    def get_subscription():
        answer = reader.ok(200, "GET", f"/subscriptions/{made['resource']['id']}")
        compare(answer.json, made["resource"])

    def update_subscription_status():
        path = f"/subscriptions/{made['resource']['id']}/status"
        answer = reader.ok(200, "PATCH", path, {"status": "paused"})
        compare(answer.json, {**made["resource"], "status": "paused",
                              "updated_at": lambda at: is_time(at) and at >= made["resource"]["updated_at"][:19]})

    def delete_subscription():
        path = f"/subscriptions/{made['resource']['id']}"
        assert reader.ok(204, "DELETE", path).body == b""
        assert reader.call("GET", path).code == "NOT_FOUND"

    # WebSocket endpoint

    def connection_establishment():
        with reader.ws("user-456") as listener:
            compare(listener.wait(lambda m: True, "the first message"),
                    {"type": "connection", "connection_id": is_id})

    def message_protocol():
        with reader.ws("user-456") as listener:
            ident = listener.wait_type("connection")["connection_id"]
            # Client to server, as the document writes it; with an ack_id the server says that it has it.
            listener.send(type="message", payload="Hello, server!")
            reply = listener.request(type="message", payload="Hello, server!")
            assert reply["type"] == "ack", reply
            sent = reader.ok(200, "POST", f"/connections/{ident}/messages",
                             {"type": "message", "payload": "Hello, client!"})
            assert sent.json == {"delivered": True}, sent
            heard = listener.wait_type("message")
            compare(heard, {"type": "message", "payload": "Hello, client!", "id": is_id, "timestamp": is_time})

    def notification_message():
        with reader.ws("user-456") as phone, reader.ws("user-456") as laptop:
            phone.wait_type("subscribed"), laptop.wait_type("subscribed")
            sent = reader.ok(201, "POST", "/notifications", NOTIFICATION).json
            for listener in (phone, laptop):
                heard = listener.wait(lambda m: m.get("type") == "notification"
                                      and m["payload"]["id"] == sent["id"], "the notification")
                for field in ("id", "title", "message", "type", "priority", "created_at", "sender_id", "actions"):
                    assert heard["payload"][field] == sent[field], (field, heard)
                # R34: the record less what is nobody else's business, plus the reader's own mark.
                assert set(heard["payload"]) == (set(sent) - {"recipients", "read_by"}) | {"read"}, heard
            reader.ok(204, "DELETE", f"/notifications/{sent['id']}")

    # Server-sent events

    def event_stream():
        with EventStream(reader.node, cluster.token("user-456")) as stream:
            first = stream.next()
            assert first["event"] == "connection", first
            compare(json.loads(first["data"]), {"connection_id": is_id})
            sent = reader.ok(201, "POST", "/notifications", NOTIFICATION).json
            heard = stream.next("notification")
            assert heard.get("id"), heard
            data = json.loads(heard["data"])
            for field in ("id", "title", "message"):
                assert data[field] == sent[field], data
            reader.ok(204, "DELETE", f"/notifications/{sent['id']}")
        # A heartbeat that a test can wait for.
        with cluster.other(QUICK) as quick, EventStream(quick.a, quick.token("user-456")) as stream:
            compare(json.loads(stream.next("ping")["data"]), {"timestamp": is_time})

    def create_event():
        with EventStream(reader.node, cluster.token("user-456")) as stream:
            stream.next("connection")
            answer = reader.ok(201, "POST", "/events", EVENT)
            compare(answer.json, {**EVENT, "id": is_id})
            heard = stream.next("update")
            assert (heard["data"], heard["retry"], heard["comment"]) == \
                (EVENT["data"], "3000", EVENT["comment"]), heard

    def broadcast_event():
        streams = [EventStream(reader.node, cluster.token(f"broadcast-{i}")) for i in range(3)]
        try:
            ids = [json.loads(stream.next("connection")["data"])["connection_id"] for stream in streams]
            body = {"event": "update", "data": EVENT["data"], "priority": "normal",
                    "recipients": [ids[0], ids[1], "connection-456"], "exclude": [ids[1], "connection-789"]}
            assert reader.ok(200, "POST", "/events/broadcast", body).body == b"1"
            body = {**body, "recipients": ids[:2], "exclude": ["connection-789"]}
            assert reader.ok(200, "POST", "/events/broadcast", body).body == b"2"
            assert streams[1].next("update")["data"] == EVENT["data"]
            reader.ok(201, "POST", "/events", {"event": "end", "data": "x"})
            counts = []
            for stream in streams:
                count = 0
                while (event := stream.next())["event"] != "end":
                    count += event["event"] == "update"
                counts.append(count)
            assert counts == [2, 0, 0], counts
        finally:
            for stream in streams:
                stream.__exit__()

    def several_lines():
        with EventStream(reader.node, cluster.token("user-456")) as stream:
            stream.next("connection")
            for data in ("one\ntwo\r\nthree\rfour", "", "\n", "data: x\n\nid: y", "ümläut \u2028 ", "[1]"):
                reader.ok(201, "POST", "/events", {"event": "lines", "data": data})
                wanted = data.replace("\r\n", "\n").replace("\r", "\n")
                heard = stream.next("lines")["data"]
                assert heard == wanted, (heard, wanted)

    # Further words of the document

    def message_to_all_is_counted():
        with reader.ws("user-456") as one, EventStream(reader.node, cluster.token("user-789")) as two:
            one.wait_type("connection"), two.next("connection")
            payload = {"type": "system", "message": "Server maintenance in 5 minutes"}
            answer = reader.ok(200, "POST", "/broadcast", {"type": "system", "payload": payload})
            assert answer.json["recipients"] >= 2, answer
            assert one.wait_type("system")["payload"] == payload
            assert json.loads(two.next("system")["data"]) == payload

    def errors_have_one_shape():
        for method, path, status, code in (("POST", "/notifications", 400, "INVALID_MESSAGE"),
                                           ("GET", "/notifications/notification-123", 404, "NOT_FOUND"),
                                           ("DELETE", "/subscriptions/subscription-123", 404, "NOT_FOUND")):
            answer = reader.call(method, path, {} if method == "POST" else None)
            assert (answer.status, answer.code) == (status, code), answer
            compare(answer.json, {"error": is_id, "code": code, "details": lambda d: isinstance(d, dict),
                                  "request_id": answer.headers["X-Request-Id"]})

    for name, test in (
            ("Create Notification", create_notification), ("Get User Notifications", get_user_notifications),
            ("Get Notification", get_notification), ("Get Unread Count", unread_count),
            ("Mark Notification as Read", mark_read),
            ("Create Resource Subscription", create_resource_subscription),
            ("Create Topic Subscription", create_topic_subscription),
            ("Get User Subscriptions", get_user_subscriptions), ("Get Subscription", get_subscription),
            ("Update Subscription Status", update_subscription_status),
            ("Delete Subscription", delete_subscription),
            ("Connection Establishment", connection_establishment), ("Message Protocol", message_protocol),
            ("Notification Message", notification_message), ("Example SSE Stream", event_stream),
            ("Create Event", create_event), ("Broadcast Event", broadcast_event),
            ("events of several lines read as an EventSource reads them", several_lines),
            ("a message to all is counted", message_to_all_is_counted),
            ("errors have one shape", errors_have_one_shape)):
        check(name, test)
    reader.forget()
