"""Stored notifications over three nodes: delivered by any node, pending until somebody has them, read on all
devices at once, nobody's but their recipients'."""

import json
import time

from events import EventStream
from harness import call, wait_until


def facts(check, cluster):
    a, b, c = cluster.nodes
    used = iter(range(1_000_000))

    def name(stem):
        return f"{stem}-n{next(used)}"

    def create(node, *recipients, **more):
        body = {"title": name("title"), "message": "text", "recipients": list(recipients), **more}
        answer = cluster.post(node, "/notifications", body)
        assert answer.status == 201, answer
        return answer.json

    def as_user(user, node, method, path, body=None):
        return call(node, method, path, body, {"Authorization": f"Bearer {cluster.token(user)}"})

    def listed(node, user, query=""):
        answer = cluster.get(node, f"/notifications?user_id={user}&page_size=100{query}")
        assert answer.status == 200, answer
        return answer.json

    def unread(node, user):
        return cluster.get(node, f"/notifications/unread-count/{user}").json

    def status(node, ident):
        return cluster.get(node, f"/notifications/{ident}").json["status"]

    def live(*listeners):
        """A head that came is no welcome yet: what is created before it finds others, and is pending no more."""
        for listener in listeners:
            listener.wait_type("connect")

    def its(ident):
        return lambda m: m.get("type") == "notification" and m["payload"]["id"] == ident

    def delivered_on_every_node_to_every_transport():
        user = name("ann")
        with cluster.ws(a, user) as one, cluster.ws(b, user, codec="carillon.msgpack") as two, \
                cluster.sse(c, user) as three:
            live(one, two, three)
            for node in cluster.nodes:
                made = create(node, user)
                for listener in (one, two, three):
                    heard = listener.wait(its(made["id"]), "the notification")
                    assert heard["channel"] == "notifications" and heard["payload"]["read"] is False, heard
                wait_until("delivered", lambda made=made: status(a, made["id"]) == "delivered")
            create_end = create(a, user)
            for listener in (one, two, three):
                listener.wait(its(create_end["id"]), "the last one")
                ids = [m["payload"]["id"] for m in listener.heard if m["type"] == "notification"]
                assert len(ids) == len(set(ids)) == 4, ids

    def a_poll_has_it():
        user = name("poll")
        made = create(a, user)
        path = f"/api/v1/realtime/poll?user_id={user}&timeout=0"
        headers = {"Authorization": f"Bearer {cluster.token(user)}"}
        begun = call(b, "GET", path, None, headers, base="").json
        assert [e["payload"]["id"] for e in begun["events"]] == [made["id"]], begun
        assert begun["events"][0]["channel"] == "notifications", begun
        assert status(c, made["id"]) == "delivered"
        assert call(a, "GET", path, None, headers, base="").json["events"] == [], "once"
        first = begun["last_poll_id"]
        second = create(a, user)
        heard = []

        def polled():
            answer = call(c, "GET", f"{path}&last_poll_id={first}", None, headers, base="")
            assert answer.status == 200, answer
            heard.extend(e["payload"]["id"] for e in answer.json["events"] if e["type"] == "notification")
            return second["id"] in heard
        wait_until("the poll has it", polled)
        assert made["id"] not in heard, "its live message is a twin"
        wait_until("and so it is delivered", lambda: status(b, second["id"]) == "delivered")

    def pending_comes_on_connect_oldest_first_once():
        user = name("ben")
        made = [create(node, user)["id"] for node in (a, b, c, a)]
        assert [one["id"] for one in listed(c, user, "&status=pending")] == made[::-1]
        with cluster.ws(b, user) as one:
            for ident in made:
                one.wait(its(ident), "a pending one")
            assert [m["payload"]["id"] for m in one.heard if m["type"] == "notification"] == made
            wait_until("all are delivered", lambda: not listed(c, user, "&status=pending"))
            with cluster.ws(c, user) as two:
                live(two)
                end = create(a, user)["id"]
                one.wait(its(end), "the end"), two.wait(its(end), "the end")
                again = [m["payload"]["id"] for m in two.heard if m["type"] == "notification"]
                assert again == [end], again
                assert sum(its(made[0])(m) for m in one.heard) == 1

    def reading_is_told_to_the_other_devices():
        user = name("cat")
        with cluster.ws(a, user) as phone, cluster.ws(b, user) as laptop, cluster.sse(c, user) as tablet:
            live(phone, laptop, tablet)
            made = create(c, user, name("other"))
            for listener in (phone, laptop, tablet):
                listener.wait(its(made["id"]), "the notification")
            ack = phone.request(type="notification_read", payload={"notification_id": made["id"]})
            assert ack["type"] == "ack", ack
            for listener in (laptop, tablet):
                told = listener.wait_type("notification_read")
                assert told["payload"]["notification_id"] == made["id"], told
            assert unread(b, user) == 0
            # By REST the phone hears of it as well.
            more = [create(a, user)["id"] for _ in range(3)]
            answer = as_user(user, b, "POST", "/notifications/mark-all-read")
            assert answer.json == {"marked": 3}, answer
            for listener in (phone, laptop, tablet):
                listener.wait_type("notification_read_all")
            assert unread(c, user) == 0 and {one["status"] for one in listed(a, user)} >= {"read"}
            assert as_user(user, c, "POST", "/notifications/mark-all-read").json == {"marked": 0}
            assert len(more) == 3

    def the_status_is_the_aggregate():
        one, two = name("dan"), name("eve")
        made = create(a, one, two)["id"]
        assert status(b, made) == "pending"
        cluster.post(b, f"/notifications/{made}/mark-read?user_id={one}", {})
        assert status(c, made) == "delivered"
        assert [n["id"] for n in listed(a, two, "&status=pending")] == [made]
        cluster.post(c, f"/notifications/{made}/mark-read?user_id={two}", {})
        seen = cluster.get(a, f"/notifications/{made}").json
        assert seen["status"] == "read" and sorted(seen["read_by"]) == sorted([one, two]), seen

    def expiry_ends_it_everywhere():
        user = name("fay")
        polls = f"/api/v1/realtime/poll?user_id={user}&timeout=0"
        as_its = {"Authorization": f"Bearer {cluster.token(user)}"}

        def shown(stream, last):
            with stream:
                stream.wait(its(last), "the last")
                return told(stream.heard)

        def told(messages):
            return [m["payload"]["id"] for m in messages if m["type"] == "notification"]
        with cluster.sse(a, user) as stream:
            live(stream)
            first = create(a, user)["id"]
            left = stream.wait(its(first), "the first")["_id"]
        polled = call(a, "GET", polls, None, as_its, base="").json["last_poll_id"]
        cluster.post(a, f"/notifications/{first}/mark-read?user_id={user}", {})
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
        made = create(a, user, expires_at=soon)["id"]
        past = create(b, user, expires_at="2020-01-01T00:00:00Z")
        assert past["status"] == "expired", past
        assert unread(c, user) == 1
        wait_until("it is expired", lambda: unread(b, user) == 0)
        assert not listed(a, user, "&status=pending") and not listed(c, user, "&unread=true")
        assert [one["id"] for one in listed(b, user, "&status=expired")] == [past["id"], made]
        with cluster.ws(c, user) as one:
            end = create(a, user)["id"]
            one.wait(its(end), "the end")
            assert [m["payload"]["id"] for m in one.heard if m["type"] == "notification"] == [end]
        # Whoever comes back to a stream that holds it is not sent it either.
        assert shown(cluster.sse(b, user, last_event_id=left), end) == [end]
        answer = call(b, "GET", f"{polls}&last_poll_id={polled}", None, as_its, base="").json
        assert told(answer["events"]) == [end], answer
        missed = call(c, "GET", f"/api/v1/realtime/poll/missed?user_id={user}&last_sequence=0", None, as_its, base="")
        assert told(missed.json["messages"]) == [first, end], missed.json
        assert cluster.get(a, f"/notifications/{made}").json["delivered_at"] is None

    def its_creators_next_call_comes_behind_it():
        user = name("kim")
        with cluster.ws(c, user) as one:
            live(one)
            for turn in range(20):
                made = create(cluster.nodes[turn % 2], user)["id"]
                if turn % 3:
                    cluster.post(b, f"/notifications/{made}/mark-read?user_id={user}", {})
                cluster.post(a, f"/users/{user}/messages", {"type": "next", "payload": made})
                one.wait(lambda m, made=made: m["type"] == "next" and m["payload"] == made, "the next")
                kinds = [m["type"] for m in one.heard if made in json.dumps(m["payload"])]
                read = ["notification_read"] if turn % 3 else []
                assert kinds == ["notification", *read, "next"], kinds

    def lists_are_filtered_and_paged():
        user = name("gus")
        made = [create(cluster.nodes[i % 3], user, type=("info", "system")[i % 2],
                       priority=("low", "urgent")[i // 3 % 2])["id"] for i in range(12)]
        newest_first = made[::-1]
        assert [n["id"] for n in listed(a, user)] == newest_first
        assert [n["id"] for n in listed(b, user, "&type=system&priority=urgent")] == \
            [ident for i, ident in reversed(list(enumerate(made))) if i % 2 and i // 3 % 2]
        # Pages as of one moment do not shift while new ones arrive: the answer links to the next.
        path, pages = f"/notifications?user_id={user}&page_size=5", []
        while path:
            answer = cluster.get(c, path)
            pages.append([n["id"] for n in answer.json])
            create(a, user)
            link = answer.headers.get("Link")
            path = link[1:link.index(">")].removeprefix("/api/realtime") if link else None
            assert answer.headers["X-Total-Count"] == "12", answer.headers
        assert pages == [newest_first[:5], newest_first[5:10], newest_first[10:]], pages
        fresh = cluster.get(b, f"/notifications?user_id={user}&page_size=1")
        assert fresh.headers["X-Total-Count"] == "15", fresh.headers

    def ten_thousand_recipients_in_one_call():
        users = [name("many") for _ in range(10_000)]
        with cluster.ws(b, users[9_999]) as last, cluster.sse(c, users[0]) as first:
            live(last, first)
            made = create(a, *users)
            last.wait(its(made["id"]), "the last recipient's"), first.wait(its(made["id"]), "the first's")
        for user in users[::1_111]:
            assert unread(c, user) == 1
        over = cluster.post(a, "/notifications", {"title": "t", "message": "m", "recipients": [*users, "one-more"]})
        assert over.status == 400 and over.json["details"]["field"] == "recipients", over

    def nobody_touches_what_is_not_theirs():
        owner, stranger = name("owner"), name("stranger")
        note = create(a, owner)["id"]
        sub = cluster.post(b, "/subscriptions/topic", {"user_id": owner, "topic": "t"}).json["id"]
        foreign = {"notifications": note, "subscriptions": sub}
        # Of the same shape as ours, so that nothing can be told from the id itself.
        unknown = {kind: ident[:-1] + ("0" if ident[-1] != "0" else "1") for kind, ident in foreign.items()}
        calls = [("GET", "notifications", "", None), ("DELETE", "notifications", "", None),
                 ("POST", "notifications", "/mark-read", None),
                 ("POST", "notifications", f"/mark-read?user_id={stranger}", None),
                 ("GET", "subscriptions", "", None), ("DELETE", "subscriptions", "", None),
                 ("PATCH", "subscriptions", "", {"labels": ["x"]}),
                 ("PATCH", "subscriptions", "/status", {"status": "paused"}),
                 ("PATCH", "subscriptions", "/status", {"status": "lost"})]
        for node in cluster.nodes:
            for method, kind, rest, body in calls:
                answers = []
                for ids in (foreign, unknown):
                    headers = {"Authorization": f"Bearer {cluster.token(stranger)}", "X-Request-Id": "same"}
                    answer = call(node, method, f"/{kind}/{ids[kind]}{rest}", body, headers)
                    kept = {k.lower(): v for k, v in answer.headers.items() if k.lower() != "date"}
                    answers.append((answer.status, kept, answer.body))
                assert answers[0] == answers[1], (method, kind, rest, answers)
                assert answers[0][0] in (404, 400) and (answers[0][0] == 404 or "lost" in str(body)), answers
            for path in (f"/notifications?user_id={owner}", f"/notifications/unread-count/{owner}",
                         f"/subscriptions?user_id={owner}"):
                assert as_user(stranger, node, "GET", path).code == "FORBIDDEN", path
            for path in (f"/notifications/{note}/mark-read?user_id={owner}",
                         f"/notifications/mark-all-read?user_id={owner}"):
                assert as_user(stranger, node, "POST", path).code == "FORBIDDEN", path
            assert as_user(stranger, node, "GET", "/notifications").json == []
            with cluster.ws(node, stranger) as one:
                answers = []
                for ident in (note, unknown["notifications"]):
                    error = one.request(type="notification_read", payload={"notification_id": ident})
                    answers.append((error["type"], error["payload"]))
                assert answers[0] == answers[1] and answers[0][0] == "error", answers
        assert unread(a, owner) == 1
        assert cluster.get(b, f"/subscriptions/{sub}").json["status"] == "active"
        with cluster.ws(c, owner) as one:
            one.wait(its(note), "the owner's own")

    def deleting_takes_it_from_all():
        one, two = name("hal"), name("ivy")
        made = create(a, one, two)["id"]
        assert as_user(one, b, "DELETE", f"/notifications/{made}").status == 204
        assert as_user(one, c, "GET", f"/notifications/{made}").status == 404
        assert listed(a, one) == [] and len(listed(a, two)) == 1
        answer = call(c, "DELETE", f"/notifications/{made}", None, {"X-API-Key": cluster.keys.api_key})
        assert answer.status == 204, answer
        for node in cluster.nodes:
            assert cluster.get(node, f"/notifications/{made}").status == 404
            assert listed(node, two) == [] and unread(node, two) == 0

    def an_event_source_reads_the_documents_shape():
        user = name("jan")
        with EventStream(a, cluster.token(user)) as stream:
            stream.next("connection")
            made = create(b, user, actions=[{"label": "View", "action": "view", "data": {"id": "1"}}])
            data = json.loads(stream.next("notification")["data"])
            assert data["id"] == made["id"] and data["actions"] == made["actions"], data

    check("a notification reaches all of a user's connections on all nodes once",
          delivered_on_every_node_to_every_transport)
    check("a long poll has a notification, and so it is delivered", a_poll_has_it)
    check("pending ones come on connect, oldest first, once", pending_comes_on_connect_oldest_first_once)
    check("reading on one device is told to the others", reading_is_told_to_the_other_devices)
    check("the status is the aggregate over recipients", the_status_is_the_aggregate)
    check("an expired notification is neither unread, pending nor delivered", expiry_ends_it_everywhere)
    check("what a notification's creator does next comes behind it", its_creators_next_call_comes_behind_it)
    check("lists are filtered, and pages of one moment do not shift", lists_are_filtered_and_paged)
    check("ten thousand recipients in one call", ten_thousand_recipients_in_one_call)
    check("a foreign id answers like an unknown one, byte for byte", nobody_touches_what_is_not_theirs)
    check("deleting takes a notification from one or from all", deleting_takes_it_from_all)
    check("an EventSource reads a notification as documented", an_event_source_reads_the_documents_shape)
