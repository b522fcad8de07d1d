"""Killing a node in the middle of creates: every recipient has the notification, or nobody has.

Real Redis, three nodes, `kill -9` at a random moment while several POST /notifications are under way, each begun at a
moment of its own. Afterwards the survivors are asked: each recipient has it exactly once in their list and exactly once in
their stream, or there is no trace of it anywhere.
"""

import asyncio
import http.client
import random
import threading
import time

from harness import Cluster, wait_until
from interleavings import Http

# What one kill meets under way. Beyond a thousand recipients the inboxes follow the record, written by whoever lives.
UNDER_WAY = [1_000, 1_000, 1_000, 2_000]
KILLS = 2
# What the dead node began is finished once its claims have run out, in ten seconds.
SETTLED_SECONDS = 20
PATIENCE_SECONDS = 60
READERS = 16


class Create:
    """One POST /notifications, its recipients, and what the caller was told."""

    def __init__(self, cluster, victim, name, recipients):
        self.cluster, self.victim, self.answered = cluster, victim, []
        self.users = [f"{name}-u{n}" for n in range(recipients)]
        self.body = {"title": name, "message": "m", "recipients": self.users}
        self.thread = threading.Thread(target=self.post)

    def post(self):
        began = time.monotonic()
        try:
            self.answered.append(self.cluster.post(self.victim, "/notifications", self.body).status)
        except (OSError, http.client.HTTPException):
            pass  # killed meanwhile
        self.took = time.monotonic() - began


class Survivor:
    """Asks one living node about many users, over a few kept connections."""

    def __init__(self, cluster, node):
        self.node, self.key = node, f"X-API-Key: {cluster.keys.api_key}\r\n"

    def ask(self, paths):
        async def all_of_them():
            kept, slots = Http(self.node), asyncio.Semaphore(READERS)

            async def one(path):
                async with slots:
                    return await kept.request("GET", "/api/realtime" + path, None, self.key)
            try:
                return await asyncio.gather(*map(one, paths))
            finally:
                kept.close()
        return asyncio.run(all_of_them())

    def lists(self, users):
        return self.ask(f"/notifications?user_id={user}" for user in users)

    def in_streams(self, users, ident=None):
        """How often each user's stream holds it (or any notification, without an id)."""
        histories = self.ask(f"/channels/user:{user}/history?limit=10" for user in users)
        return [sum(m["type"] == "notification" and ident in (None, m["id"]) for m in history["messages"])
                for history in histories]

    def settled(self, create, killed_at):
        """Everybody's list, once what the dead node began must be finished."""
        while True:
            late = time.monotonic() - killed_at
            ends = [bool(entries) for entries in self.lists([create.users[0], create.users[-1]])]
            if all(ends) or late > SETTLED_SECONDS:
                listed = self.lists(create.users)
                if all(listed) or not any(listed) or late > PATIENCE_SECONDS:
                    return listed
            time.sleep(0.5)


def facts(check, binary, kills=KILLS):
    seed = random.randrange(1 << 32)
    chance, outcomes = random.Random(seed), {"whole": 0, "nothing": 0, "answered": 0}
    with Cluster(binary) as cluster:
        took = warm(cluster, cluster.nodes[0])
        for kill in range(kills):
            victim, survivor = cluster.nodes[0], Survivor(cluster, cluster.nodes[1 + kill % 2])
            creates = [Create(cluster, victim, f"k{kill}c{n}", recipients) for n, recipients in enumerate(UNDER_WAY)]
            killed_at = kill_in_the_middle(victim, creates, took, chance)
            for create in creates:
                check(f"a create for {len(create.users)} recipients, killed in the middle, is whole or nothing "
                      f"({create.body['title']}, seed {seed})", whole_or_nothing, survivor, create, killed_at, outcomes)
            wait_until("the killed node is back", victim.ready, PATIENCE_SECONDS, victim)
    print(f"     seed {seed}: {outcomes}", flush=True)


def kill_in_the_middle(victim, creates, took, chance):
    """Begins each create so long before the kill that most are under way then; the node lives again. When it was killed."""
    kill_at = time.monotonic() + 1.1 * max(took)
    for begin, create in sorted((kill_at - chance.uniform(0, 0.8 * took[n]), n) for n in range(len(creates))):
        time.sleep(max(0, begin - time.monotonic()))
        creates[create].thread.start()
    time.sleep(max(0, kill_at - time.monotonic()))
    victim.kill()
    killed_at = time.monotonic()
    for create in creates:
        create.thread.join()
    victim.start()
    return killed_at


def whole_or_nothing(survivor, create, killed_at, outcomes):
    listed, users = survivor.settled(create, killed_at), create.users
    having = sum(map(bool, listed))
    assert having in (0, len(users)), f"{having} of {len(users)} have it"
    assert not create.answered or create.answered == [201] and having, f"answered {create.answered}, {having} have it"
    outcomes["whole" if having else "nothing"] += 1
    outcomes["answered"] += bool(create.answered)
    if not having:
        assert not any(survivor.in_streams(users)), "a stream has a trace of it"
        return
    ids = {entry["id"] for entries in listed for entry in entries}
    assert len(ids) == 1 and all(len(entries) == 1 for entries in listed), listed
    ident = ids.pop()
    assert survivor.ask([f"/notifications/{ident}"])[0]["id"] == ident
    wait_until("every stream has it once", lambda: all(n == 1 for n in survivor.in_streams(users, ident)), PATIENCE_SECONDS)
    # And no node that comes later adds another.
    time.sleep(1)
    assert all(n == 1 for n in survivor.in_streams(users[::10], ident)), "a stream has it twice"


def warm(cluster, node):
    """Seconds that each of such creates takes, all under way at once, when nobody kills them."""
    times = []
    for n in range(3):
        creates = [Create(cluster, node, f"warm{n}c{m}", recipients) for m, recipients in enumerate(UNDER_WAY)]
        for create in creates:
            create.thread.start()
        for create in creates:
            create.thread.join()
        assert all(create.answered == [201] for create in creates), [create.answered for create in creates]
        times.append([create.took for create in creates])
    return [min(took) for took in zip(*times)]
