"""Killing a node in the middle of a create: every recipient has the notification, or nobody has.

Real Redis, three nodes, `kill -9` at random moments while one POST /notifications is under way. Afterwards the
survivors are asked: each recipient has it exactly once in their list and exactly once in their stream, or there is no
trace of it anywhere.
"""

import http.client
import random
import socket
import threading
import time

from harness import Cluster, call, wait_until

RECIPIENTS = 1_000
TRIALS = 6
# Beyond a thousand recipients the inboxes follow the record, written by whoever lives.
MANY = 2_000
MANY_TRIALS = 2


def facts(check, binary):
    with Cluster(binary) as cluster:
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        outcomes = {"whole": 0, "nothing": 0, "answered": 0}

        def all_or_nothing(trial, recipients):
            victim, survivor = cluster.nodes[0], cluster.nodes[1 + trial % 2]
            users = [f"t{recipients}-{trial}-u{n}" for n in range(recipients)]
            body = {"title": f"trial {trial}", "message": "m", "recipients": users}
            took = warm(cluster, victim, body) if trial == 0 else all_or_nothing.took
            all_or_nothing.took = took
            answered = []

            def create():
                try:
                    answered.append(cluster.post(victim, "/notifications", body).status)
                except (OSError, http.client.HTTPException):
                    pass  # killed meanwhile
            caller = threading.Thread(target=create)
            caller.start()
            time.sleep(chance.uniform(0, 1.1 * took))
            victim.kill()
            caller.join()
            victim.start()
            listed = settled(cluster, survivor, users)
            having = sum(1 for entries in listed.values() if entries)
            assert having in (0, len(users)), f"{having} of {len(users)} have it (seed {seed})"
            assert not answered or answered == [201] and having, f"answered {answered}, {having} have it"
            outcomes["whole" if having else "nothing"] += 1
            outcomes["answered"] += bool(answered)
            if having:
                ids = {entry["id"] for entries in listed.values() for entry in entries}
                assert len(ids) == 1 and all(len(entries) == 1 for entries in listed.values()), listed
                ident = ids.pop()
                assert call(survivor, "GET", f"/notifications/{ident}", None, key(cluster)).status == 200
                wait_until("every stream has it once",
                           lambda: all(n == 1 for n in in_streams(cluster, survivor, users, ident)), 60)
                # And no node that comes later adds another.
                time.sleep(1)
                assert all(n == 1 for n in in_streams(cluster, survivor, users[::10], ident))
            else:
                assert not any(in_streams(cluster, survivor, users, None)), "a stream has a trace of it"
            wait_until("the killed node is back", victim.ready, 30, victim)

        for trial in range(TRIALS):
            check(f"a create for {RECIPIENTS} recipients, killed in the middle, is whole or nothing ({trial + 1})",
                  all_or_nothing, trial, RECIPIENTS)
        for trial in range(MANY_TRIALS):
            check(f"the same for {MANY} recipients ({trial + 1})", all_or_nothing, trial, MANY)
        print(f"     seed {seed}: {outcomes}", flush=True)


def key(cluster):
    return {"X-API-Key": cluster.keys.api_key}


def warm(cluster, node, body):
    """Seconds that such a create takes when nobody kills it."""
    times = []
    for n in range(3):
        began = time.monotonic()
        users = [f"warm-{n}-{user}" for user in body["recipients"]]
        assert cluster.post(node, "/notifications", {**body, "recipients": users}).status == 201
        times.append(time.monotonic() - began)
    return min(times)


def ask(node, path, headers, connection=[None, None]):
    """GET over a kept connection: thousands of them in a row."""
    import json
    if connection[1] is not node:
        connection[:] = [http.client.HTTPConnection("127.0.0.1", node.port, timeout=30), node]
    for attempt in (1, 2):
        try:
            connection[0].request("GET", "/api/realtime" + path, headers=headers)
            if attempt == 1 and connection[0].sock:
                connection[0].sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = connection[0].getresponse()
            body = answer.read()
            assert answer.status == 200, (answer.status, body[:200])
            return json.loads(body)
        except (OSError, http.client.HTTPException):
            connection[0].close()
    raise AssertionError(f"{node.name} does not answer")


def settled(cluster, node, users):
    """Everybody's list, once what the dead node began must be finished: its claims run out in ten seconds."""
    end = time.monotonic() + 40
    while True:
        first = ask(node, f"/notifications?user_id={users[0]}", key(cluster))
        last = ask(node, f"/notifications?user_id={users[-1]}", key(cluster))
        listed = {user: ask(node, f"/notifications?user_id={user}", key(cluster)) for user in users}
        having = sum(bool(entries) for entries in listed.values())
        if having == len(users) or having == 0 and not first and not last and time.monotonic() > end - 25:
            return listed
        if time.monotonic() > end:
            return listed
        time.sleep(0.5)


def in_streams(cluster, node, users, ident):
    """How often each user's stream holds it (or anything, without an id)."""
    return [sum(m["type"] == "notification" and ident in (None, m["id"])
                for m in ask(node, f"/channels/user:{user}/history?limit=10", key(cluster))["messages"])
            for user in users]
