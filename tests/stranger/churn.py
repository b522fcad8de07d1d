"""Presence under churn: users join, leave and drop on three nodes, one node is killed. When it is quiet again every node's list is
the model's, and what listeners were told, told again from the beginning, leads to that same list."""

import asyncio
import json
import random
import time
import urllib.parse

import websockets
from harness import PATIENCE_SECONDS, Cluster, call, wait_until

USERS = 200
RESOURCES = [f"presence:churn/{n}" for n in range(4)]
STEPS = 12
# However slow the machine is, nobody here is silent for so long that they count as gone.
CONFIGURATION = '[presence]\ntimeout = "1h"\n'
# A dead node's lease is 15 s; sweeping it may be claimed twice.
QUIET_SECONDS = 60


class Tab:
    """One connection of a user and the resources where it holds them."""

    def __init__(self, node, socket):
        self.node, self.socket, self.at, self.number = node, socket, set(), 0

    async def request(self, **message):
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.number += 1
            await self.socket.send(json.dumps({**message, "ack_id": str(self.number)}))
            answer = await self.answer()
            if answer["type"] == "ack":
                return
            # A Redis that had no time for it within the time-out: whoever asked asks again.
            assert answer["payload"]["code"] == "UNAVAILABLE" and time.monotonic() < end, answer

    async def answer(self):
        while True:
            answer = json.loads(await asyncio.wait_for(self.socket.recv(), PATIENCE_SECONDS))
            if answer.get("ack_id") == str(self.number):
                return answer


async def connect(cluster, node, user):
    return await websockets.connect(f"ws://127.0.0.1:{node.port}/ws?token={cluster.token(user)}", open_timeout=60,
                                    ping_interval=None, compression=None)


class Watcher:
    """Hears every announcement of every resource from the beginning, and keeps what it was told."""

    def __init__(self, name):
        self.name, self.lists, self.wrong = name, {resource: set() for resource in RESOURCES}, []

    async def watch(self, cluster, node):
        self.socket = await connect(cluster, node, self.name)
        for resource in RESOURCES:
            await self.socket.send(json.dumps({"type": "subscribe", "channel": resource}))
        left = set(RESOURCES)
        while left:
            message = json.loads(await self.socket.recv())
            if message["type"] == "subscribed":
                left.discard(message["channel"])
        self.task = asyncio.create_task(self.read())

    async def read(self):
        try:
            async for text in self.socket:
                message = json.loads(text)
                if message["type"] not in ("presence:join", "presence:leave"):
                    continue
                there, user = self.lists[message["channel"]], message["payload"]["id"]
                joined = message["type"] == "presence:join"
                if (user in there) == joined:
                    self.wrong.append((message["type"], message["channel"], user))
                (there.add if joined else there.discard)(user)
        except websockets.ConnectionClosed:
            pass


async def churn(cluster, seed):
    """Plays, kills the last node in the middle, and returns the tabs that live and the watchers of living nodes."""
    chance = random.Random(seed)
    nodes, dying = cluster.nodes, cluster.nodes[-1]
    watchers = [Watcher(f"watcher{n}") for n in range(2)]
    for watcher, node in zip(watchers, nodes):
        await watcher.watch(cluster, node)
    living, killed = [], asyncio.Event()
    slots = asyncio.Semaphore(30)

    async def user(number):
        name, tabs = f"u{number}", []
        own = random.Random(seed * 1000 + number)
        for step in range(STEPS):
            async with slots:
                act, asked = own.random(), None
                alive = [node for node in nodes if not (killed.is_set() and node is dying)]
                try:
                    if not tabs or (act < 0.2 and len(tabs) < 3):
                        asked = own.choice(alive)
                        tabs.append(Tab(asked, await connect(cluster, asked, name)))
                    elif act < 0.65:
                        tab, resource = own.choice(tabs), own.choice(RESOURCES)
                        asked = tab.node
                        # Counted before it is said: should the node die in between, nothing is there either way.
                        tab.at.add(resource)
                        await tab.request(type="presence:join", channel=resource)
                    elif act < 0.8:
                        tab = own.choice(tabs)
                        asked = tab.node
                        if tab.at:
                            resource = own.choice(sorted(tab.at))
                            await tab.request(type="presence:leave", channel=resource)
                            tab.at.discard(resource)
                    else:
                        tab = tabs.pop(own.randrange(len(tabs)))
                        tab.socket.transport.abort()
                except (websockets.WebSocketException, OSError, asyncio.TimeoutError):
                    # Only the node that was killed may do that.
                    assert killed.is_set() and asked is dying, f"{name} was cut off by a living node"
                tabs = [tab for tab in tabs if not (killed.is_set() and tab.node is dying)]
            await asyncio.sleep(own.random() * 0.05)
        living.extend((name, tab) for tab in tabs)

    async def kill():
        await asyncio.sleep(chance.uniform(1.0, 2.0))
        killed.set()
        dying.kill()

    await asyncio.gather(kill(), *(user(number) for number in range(USERS)))
    return [(name, tab) for name, tab in living if tab.node is not dying], watchers


def listed(cluster, node, resource):
    path = "/presence/" + urllib.parse.quote(resource.removeprefix("presence:"), safe="")
    answer = call(node, "GET", path, None, {"X-API-Key": cluster.keys.api_key})
    assert answer.status == 200, answer
    return {user["id"] for user in answer.json["users"]}


async def play(cluster, seed):
    living, watchers = await churn(cluster, seed)
    model = {resource: {name for name, tab in living if resource in tab.at} for resource in RESOURCES}
    nodes = cluster.nodes[:-1]
    end = time.monotonic() + QUIET_SECONDS

    def shown():
        lists = [{resource: listed(cluster, node, resource) for resource in RESOURCES} for node in nodes]
        return [*lists, *(watcher.lists for watcher in watchers)]

    while True:
        lists = await asyncio.to_thread(shown)
        if all(each == model for each in lists):
            break
        if time.monotonic() > end:
            differences = [{r: sorted(each[r] ^ model[r]) for r in RESOURCES if each[r] != model[r]} for each in lists]
            raise AssertionError(f"lists differ from the model (nodes, then watchers): {differences}")
        await asyncio.sleep(0.5)
    for watcher in watchers:
        assert not watcher.wrong, f"told twice or for nothing: {watcher.wrong[:10]}"
    assert sum(map(len, model.values())) > 20, "too few are there for a proof"
    # The dead node, back again, shows the same.
    cluster.nodes[-1].start()
    await asyncio.to_thread(wait_until, "the killed node is ready again", cluster.nodes[-1].ready, 60, cluster.nodes[-1])
    again = {resource: listed(cluster, cluster.nodes[-1], resource) for resource in RESOURCES}
    assert again == model, again
    # Everybody goes; every list is empty, each leave told once.
    end = time.monotonic() + QUIET_SECONDS
    for _, tab in living:
        tab.socket.transport.abort()
    while any(any(lists.values()) for lists in await asyncio.to_thread(shown)):
        assert time.monotonic() < end, "somebody stays who is gone"
        await asyncio.sleep(0.2)
    for watcher in watchers:
        assert not watcher.wrong, f"told twice or for nothing: {watcher.wrong[:10]}"
        await watcher.socket.close()
        await watcher.task


def facts(check, binary, seed=None):
    seed = seed or random.SystemRandom().randrange(1, 2**31)

    def presence_stays_true():
        print(f"churn with seed {seed}", flush=True)
        with Cluster(binary, extra_toml=CONFIGURATION) as cluster:
            asyncio.run(play(cluster, seed))

    check(f"{USERS} users join, leave and drop, a node dies: every list is the model's and the log replays to it",
          presence_stays_true)
