"""Persistent subscriptions over three nodes: they act on every connection of their user, live ones included,
within a second, once an event; filters, pausing, expiry, reconnects, lost Redis connections."""

import time

from events import EventStream
from harness import call, wait_until

# Every operator, and what it must say of a payload (R16: $ne, $nin and $not match a missing field).
FILTERS = [
    ({"n": 1}, [{"n": 1}, {"n": 1.0}], [{"n": 2}, {}, {"n": "1"}]),
    ({"a.b": {"$eq": "x"}}, [{"a": {"b": "x"}}], [{"a": {"b": "y"}}, {"a": "x"}]),
    ({"n": {"$ne": 1}}, [{"n": 2}, {}], [{"n": 1}]),
    ({"n": {"$in": [1, "two"]}}, [{"n": 1}, {"n": "two"}], [{"n": 2}, {}]),
    ({"n": {"$nin": [1, 2]}}, [{"n": 3}, {}], [{"n": 2}]),
    ({"n": {"$gt": 1}}, [{"n": 1.5}], [{"n": 1}, {}, {"n": "2"}]),
    ({"n": {"$gte": 1}}, [{"n": 1}], [{"n": 0}]),
    ({"n": {"$lt": "m"}}, [{"n": "a"}], [{"n": "z"}, {"n": 1}]),
    ({"n": {"$lte": 1}}, [{"n": 1}], [{"n": 1.01}, {}]),
    ({"n": {"$exists": True}}, [{"n": None}], [{}]),
    ({"n": {"$exists": False}}, [{}], [{"n": None}]),
    ({"$and": [{"n": {"$gt": 1}}, {"n": {"$lt": 3}}]}, [{"n": 2}], [{"n": 3}]),
    ({"$or": [{"n": 1}, {"tags.0": "hot"}]}, [{"n": 1}, {"tags": ["hot"]}], [{"n": 2, "tags": ["cold"]}]),
    ({"$not": {"n": 1}}, [{"n": 2}, {}], [{"n": 1}]),
    ({"n": {"$not": {"$gt": 1}}}, [{"n": 1}, {}], [{"n": 2}]),
]


def facts(check, cluster):
    a, b, c = cluster.nodes
    used = iter(range(1_000_000))

    def name(stem):
        return f"{stem}-s{next(used)}"

    def subscribe(node, kind, user, **body):
        answer = cluster.post(node, f"/subscriptions/{kind}", {"user_id": user, **body})
        assert answer.status == 201, answer
        return answer.json["id"]

    def change(node, method, path, body=None):
        answer = call(node, method, f"/subscriptions/{path}", body, {"X-API-Key": cluster.keys.api_key})
        assert answer.status in (200, 204), answer
        return answer

    def subscribers(channel):
        return cluster.get(a, f"/channels/{channel}").json["subscribers"]

    def listening(channel, connections):
        wait_until(f"{connections} listen to {channel}", lambda: subscribers(channel) == connections)

    def heard_ids(listener, payload):
        """Ids on the one delivery of a payload."""
        listener.wait_payload(payload)
        deliveries = [m for m in listener.heard if m.get("payload") == payload]
        assert len(deliveries) == 1, deliveries
        return deliveries[0].get("subscription_ids")

    def acts_on_live_connections_of_any_node():
        user, topic = name("ann"), name("topic")
        with cluster.ws(a, user) as one, cluster.ws(b, user, codec="carillon.msgpack") as two, \
                cluster.sse(c, user) as three, cluster.ws(a, name("other")) as other:
            began = time.monotonic()
            ident = subscribe(b, "topic", user, topic=topic)
            listening(f"topic:{topic}", 3)
            print(f"     three connections on three nodes heard it {time.monotonic() - began:.2f} s after it was asked", flush=True)
            for node in cluster.nodes:
                payload = {"from": node.name}
                cluster.publish(node, f"topic:{topic}", payload)
                for listener in (one, two, three):
                    assert heard_ids(listener, payload) == [ident]
            other.wait_live([])
            change(c, "PATCH", f"{ident}/status", {"status": "paused"})
            listening(f"topic:{topic}", 0)
            change(a, "PATCH", f"{ident}/status", {"status": "active"})
            listening(f"topic:{topic}", 3)
            cluster.publish(b, f"topic:{topic}", {"again": 1})
            for listener in (one, two, three):
                assert heard_ids(listener, {"again": 1}) == [ident]
            change(b, "DELETE", ident)
            listening(f"topic:{topic}", 0)
            assert not [m for m in other.heard if "subscription_ids" in m]

    def once_however_many_match():
        user, topic = name("ben"), name("topic")
        ids = [subscribe(cluster.nodes[i % 3], "topic", user, topic=topic,
                         **({"payload_filter": {"n": {"$gte": i}}} if i else {})) for i in range(5)]
        query = subscribe(a, "query", user, query={"channels": [f"topic:{topic}", f"feed:{topic}"],
                                                   "where": {"n": 2}})
        with cluster.ws(b, user) as one, cluster.ws(c, user, f"topic:{topic}") as two:
            listening(f"topic:{topic}", 2)
            cluster.publish(a, f"topic:{topic}", {"n": 2})
            cluster.publish(a, f"feed:{topic}", {"n": 2, "feed": 1})
            for listener in (one, two):
                assert sorted(heard_ids(listener, {"n": 2})) == sorted([*ids[:3], query])
                assert heard_ids(listener, {"n": 2, "feed": 1}) == [query]

    def an_entity_event_names_what_listens_on_both_channels():
        user, kind = name("cat"), name("Task")
        one_id = subscribe(a, "resource", user, resource_type=kind, resource_id="7")
        all_id = subscribe(b, "query", user, query={"channels": [f"entity:{kind}"]})
        with cluster.ws(c, user) as one:
            listening(f"entity:{kind}", 1)
            listening(f"entity:{kind}:7", 1)
            for number, wanted in (("7", [one_id, all_id]), ("8", [all_id])):
                data = {"id": number}
                answer = cluster.post(a, f"/entities/{kind}/{number}/events", {"action": "updated", "data": data})
                assert answer.status == 200, answer
                assert sorted(heard_ids(one, data)) == sorted(wanted)

    def every_operator():
        user = name("dan")
        topics = [name("topic") for _ in FILTERS]
        ids = [subscribe(cluster.nodes[i % 3], "topic", user, topic=topic, payload_filter=FILTERS[i][0])
               for i, topic in enumerate(topics)]
        with cluster.ws(a, user) as one, cluster.ws(b, user) as two:
            listening(f"topic:{topics[-1]}", 2)
            # The same filters as a subscribe's own.
            for topic, (document, _, _) in zip(topics, FILTERS):
                reply = two.request(type="subscribe", channel=f"topic:{topic}", payload={"filter": document})
                assert reply["type"] == "ack", reply
            for topic, ident, (document, hits, misses) in zip(topics, ids, FILTERS):
                for payload in [*misses, *hits]:
                    cluster.publish(c, f"topic:{topic}", payload, type="probe")
            cluster.post(c, f"/users/{user}/messages", {"type": "end", "payload": None})
            for listener in (one, two):
                listener.wait_type("end")
            # The user's own stream is another channel: ask for the last probe as well.
            for listener in (one, two):
                def last(m):
                    return m.get("channel") == f"topic:{topics[-1]}" and m["payload"] == FILTERS[-1][1][-1]
                if not any(last(m) for m in listener.heard):
                    listener.wait(last, "the last probe")
                for topic, ident, (document, hits, _) in zip(topics, ids, FILTERS):
                    heard = [m for m in listener.heard if m.get("channel") == f"topic:{topic}"
                             and m["type"] == "probe"]
                    assert [m["payload"] for m in heard] == hits, (document, heard)
                    assert all(m["subscription_ids"] == [ident] for m in heard), heard
        for bad in ({"n": {"$near": 1}}, {"n": {"$in": 1}}, {"$and": []}, {"n": {"$exists": 1}}, 7):
            answer = cluster.post(a, "/subscriptions/topic", {"user_id": user, "topic": "t", "payload_filter": bad})
            assert answer.status == 400, (bad, answer)

    def expires_and_is_revived():
        user, topic = name("eve"), name("topic")
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
        ident = subscribe(a, "topic", user, topic=topic, expires_at=soon)
        with cluster.ws(b, user) as one:
            listening(f"topic:{topic}", 1)
            cluster.publish(c, f"topic:{topic}", "before")
            assert heard_ids(one, "before") == [ident]
            wait_until("it is expired", lambda: cluster.get(c, f"/subscriptions/{ident}").json["status"]
                       == "expired", 15)
            cluster.publish(c, f"topic:{topic}", "after")
            change(a, "PATCH", ident, {"expires_at": None})
            wait_until("it is active", lambda: cluster.get(c, f"/subscriptions/{ident}").json["status"]
                       == "active", 15)

            def again():
                cluster.publish(c, f"topic:{topic}", "again")
                return one.times("again") or not one.inbox.empty()
            wait_until("it acts again", again)
            assert one.wait_payload("again")["subscription_ids"] == [ident]
            assert one.times("after") == 0

    def a_stream_recovers_joined_channels_by_its_cursor():
        user, topic = name("fay"), name("topic")
        ident = subscribe(a, "topic", user, topic=topic, payload_filter={"n": {"$ne": 3}})
        channel = f"topic:{topic}"
        with cluster.sse(a, user) as stream:
            listening(channel, 1)
            cluster.publish(b, channel, {"n": 0})
            cursor = stream.wait_payload({"n": 0})["_id"]
        listening(channel, 0)
        for n in range(1, 6):
            cluster.publish(c, channel, {"n": n})
        with cluster.sse(b, user, last_event_id=cursor) as stream, \
                cluster.ws(c, user, since=cursor) as socket:
            for listener in (stream, socket):
                listener.wait_payload({"n": 5})
                events = [m for m in listener.heard if m.get("channel") == channel]
                assert [m["payload"]["n"] for m in events] == [1, 2, 4, 5], events
                assert all(m["subscription_ids"] == [ident] for m in events), events
            cluster.publish(a, channel, {"n": 6})
            for listener in (stream, socket):
                listener.wait_payload({"n": 6})
                assert listener.times({"n": 5}) == 1
        # What history no longer holds is said, channel by channel.
        answer = call(a, "DELETE", f"/channels/{channel}/history", None, {"X-API-Key": cluster.keys.api_key})
        assert answer.status == 204, answer
        with cluster.sse(c, user, last_event_id=cursor) as stream:
            resync = stream.wait(lambda m: m["type"] == "resync" and m.get("channel") == channel, "a resync")
            assert resync["payload"]["reason"] == "epoch", resync

    def a_poll_hears_them():
        user, topic = name("gus"), name("topic")
        ident = subscribe(a, "topic", user, topic=topic, payload_filter={"n": {"$gt": 0}})
        headers = {"Authorization": f"Bearer {cluster.token(user)}"}

        def poll(node, number, timeout=0):
            path = f"/api/v1/realtime/poll?user_id={user}&timeout={timeout}&last_poll_id={number}"
            answer = call(node, "GET", path, None, headers, base="")
            assert answer.status == 200, answer
            return answer.json
        first = poll(b, 0)["last_poll_id"]
        for n in (0, 1):
            cluster.publish(c, f"topic:{topic}", {"n": n})
        answer = poll(a, first)
        events = [(e["payload"], e.get("subscription_ids")) for e in answer["events"]]
        assert events == [({"n": 1}, [ident])], answer
        # Asked again, the same answer; and nothing comes twice after it.
        assert poll(c, first)["events"] == answer["events"]
        cluster.publish(c, f"topic:{topic}", {"n": 2})
        assert [e["payload"] for e in poll(b, answer["last_poll_id"], 5)["events"]] == [{"n": 2}]

    def a_change_while_redis_cut_a_node_off_is_made_up_for():
        user, topic = name("hal"), name("topic")
        with cluster.ws(a, user) as one, cluster.ws(b, user) as two:
            one.wait_type("connect"), two.wait_type("connect")
            # Every node's ear is cut; the change is told into the gap.
            kill_pubsub(cluster.redis.port)
            ident = subscribe(c, "topic", user, topic=topic)
            listening(f"topic:{topic}", 2)
            cluster.publish(a, f"topic:{topic}", "heard")
            for listener in (one, two):
                assert heard_ids(listener, "heard") == [ident]

    def the_limit_a_user():
        user = name("ivy")
        for i in range(1_000):
            answer = cluster.post(cluster.nodes[i % 3], "/subscriptions/topic",
                                  {"user_id": user, "topic": f"limit-{i}"})
            assert answer.status == 201, answer
        over = cluster.post(a, "/subscriptions/topic", {"user_id": user, "topic": "one more"})
        assert over.code == "SUBSCRIPTION_LIMIT" and over.json["details"]["limit"] == 1_000, over
        # All of them act, and on event streams the cursor stays a header that fits.
        with EventStream(b, cluster.token(user)) as stream:
            stream.next("connection")
            listening("topic:limit-999", 1)
            cluster.publish(c, "topic:limit-999", "last")
            event = stream.next("message")
            assert event["data"] == "last" and len(event["id"]) < 8_000, len(event["id"])

    check("a subscription acts on live connections of any node, and ends", acts_on_live_connections_of_any_node)
    check("an event comes once with the ids of all that match", once_however_many_match)
    check("an entity event names the subscriptions of both its channels",
          an_entity_event_names_what_listens_on_both_channels)
    check("every filter operator selects, in subscriptions and in subscribe", every_operator)
    check("an expired subscription matches nothing until it is revived", expires_and_is_revived)
    check("a stream recovers automatically joined channels by its cursor",
          a_stream_recovers_joined_channels_by_its_cursor)
    check("a long poll hears persistent subscriptions, repeatably", a_poll_hears_them)
    check("a change told while nodes were cut off is made up for",
          a_change_while_redis_cut_a_node_off_is_made_up_for)
    check("a user may have a thousand subscriptions, all acting", the_limit_a_user)


def kill_pubsub(port):
    """CLIENT KILL TYPE pubsub, on a plain socket."""
    import socket
    with socket.create_connection(("127.0.0.1", port), 5) as redis:
        redis.sendall(b"CLIENT KILL TYPE pubsub\r\n")
        assert redis.recv(64).startswith(b":"), "Redis cut nobody"
