"""A thousand random interleavings of subscribe, publish, drop and resume, on WebSocket, event streams and long polls over three
nodes: every channel's messages come in order, none lost, none twice. The seed is printed; `--seed` replays it."""

import asyncio
import json
import random
import time
import urllib.parse

import websockets
from harness import Cluster

COUNT = 1_000
AT_ONCE = 40
PATIENCE_SECONDS = 45


class Http:
    """Keep-alive connections to one node; as few bytes of HTTP as it takes."""

    def __init__(self, node):
        self.node, self.idle = node, []

    async def request(self, method, path, body=None, headers=""):
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.node.port)
        try:
            data = b"" if body is None else json.dumps(body).encode()
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Type: application/json\r\n"
                         f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
            status, found = await head(reader)
            answer = json.loads(await reader.readexactly(int(found["content-length"])))
        except BaseException:
            # A request that was given up leaves its connection in the middle of an answer.
            writer.transport.abort()
            raise
        self.idle.append((reader, writer))
        assert status == 200, (path, status, answer)
        return answer

    def close(self):
        for _, writer in self.idle:
            writer.transport.abort()


async def head(reader):
    status = int((await reader.readline()).split()[1])
    headers = {}
    while (line := (await reader.readline()).decode().strip()):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return status, headers


class Scenario:
    """One listener, one or two channels, one publisher; whatever order chance gives."""

    def __init__(self, world, seed):
        self.world, self.random = world, random.Random(seed)
        self.user = f"i{seed}"
        self.token = world.cluster.token(self.user)
        self.listen = getattr(self, self.random.choice(("websocket", "events", "poll")))
        self.asked = [f"room:i{seed}-{n}" for n in range(self.random.choice((1, 1, 2)))]
        # Streams and polls hear their user's own channel without asking.
        own = [f"user:{self.user}"] if self.listen != self.websocket and self.random.random() < 0.4 else []
        self.channels = [*self.asked, *own]
        self.count = self.random.randint(3, 9)
        self.heard = {channel: [] for channel in self.channels}
        self.ready = asyncio.Event()
        self.drops = 0

    def pause(self):
        return asyncio.sleep(self.random.choice((0, 0, 0.001, 0.005, 0.02)))

    def node(self):
        return self.random.randrange(len(self.world.nodes))

    async def publish(self):
        await self.ready.wait()
        for n in range(self.count):
            for channel in self.channels:
                message = {"type": "message", "payload": n}
                path, body = ("/publish", {"channel": channel, **message}) if channel in self.asked else (
                    f"/users/{self.user}/messages", message)
                await self.world.https[self.node()].request(
                    "POST", f"/api/realtime{path}", body, f"X-API-Key: {self.world.cluster.keys.api_key}\r\n")
            await self.pause()

    def hear(self, message):
        if message["type"] == "message":
            self.heard[message["channel"]].append(message["payload"])
        assert message["type"] != "resync", message

    def whole(self):
        return all(heard and heard[-1] == self.count - 1 for heard in self.heard.values())

    def wants_to_drop(self):
        if self.ready.is_set() and self.drops < 4 and self.random.random() < 0.35:
            self.drops += 1
            return True
        return False

    async def run(self):
        publishing = asyncio.create_task(self.publish())
        try:
            await self.listen()
            await publishing
        finally:
            publishing.cancel()
        expected = list(range(self.count))
        for channel, heard in self.heard.items():
            assert heard == expected, f"{self.listen.__name__} {channel}: {heard} of {expected}, {self.drops} drops"

    async def websocket(self):
        positions = {}
        while not self.whole():
            node = self.world.nodes[self.node()]
            socket = await websockets.connect(f"ws://127.0.0.1:{node.port}/ws?token={self.token}", open_timeout=None,
                                              ping_interval=None, compression=None)
            try:
                for channel in self.random.sample(self.channels, len(self.channels)):
                    since = {"since": positions[channel]} if channel in positions else {}
                    await socket.send(json.dumps({"type": "subscribe", "channel": channel, "payload": since}))
                answered = set()
                while not self.whole():
                    message = json.loads(await socket.recv())
                    self.hear(message)
                    channel = message.get("channel")
                    if message["type"] == "subscribed" and channel in self.channels:
                        assert not self.ready.is_set() or message["payload"]["recovered"], message
                        answered.add(channel)
                        positions[channel] = {key: message["payload"][key] for key in ("offset", "epoch", "tag")}
                    elif message["type"] == "message":
                        positions[channel] = {key: message[key] for key in ("offset", "epoch", "tag")}
                    if answered == set(self.channels):
                        self.ready.set()
                    # Dropped in the middle of recovering, too: not every channel may be answered yet.
                    if self.wants_to_drop():
                        break
            finally:
                socket.transport.abort()
            await self.pause()

    async def events(self):
        cursor = None
        while not self.whole():
            node = self.world.nodes[self.node()]
            query = urllib.parse.urlencode([("token", self.token), ("profile", "social"),
                                            *(("channel", channel) for channel in self.asked)])
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            last = f"Last-Event-ID: {cursor}\r\n" if cursor else ""
            writer.write(f"GET /events?{query} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{last}\r\n".encode())
            try:
                status, _ = await head(reader)
                assert status == 200, status
                live, event = set(), {}
                async for line in chunked_lines(reader):
                    if line:
                        name, _, value = line.partition(":")
                        event[name] = value.strip()
                        continue
                    message = json.loads(event["data"]) if "data" in event else None
                    cursor = event.get("id", cursor)
                    event = {}
                    if message is None:
                        continue
                    self.hear(message)
                    if message["type"] == "subscribed":
                        live.add(message["channel"])
                        if set(self.asked) <= live:
                            self.ready.set()
                    if self.whole() or self.wants_to_drop():
                        break
            finally:
                writer.transport.abort()
            await self.pause()

    async def poll(self):
        last = 0
        while not self.whole():
            http = self.world.https[self.node()]
            query = urllib.parse.urlencode({"user_id": self.user, "last_poll_id": last, "channels": ",".join(self.asked),
                                            "timeout": 0 if last == 0 else 5})
            asking = asyncio.create_task(http.request("GET", f"/api/v1/realtime/poll?{query}", None,
                                                      f"Authorization: Bearer {self.token}\r\n"))
            if self.wants_to_drop():
                # The request goes out, its answer may be made, and is lost.
                await self.pause()
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                continue
            answer = await asking
            assert answer.get("recovered", True), answer
            last = answer["last_poll_id"]
            for event in answer["events"]:
                self.hear(event)
            self.ready.set()


async def chunked_lines(reader):
    rest = b""
    while (size := int(await reader.readline() or b"0", 16)):
        rest += await reader.readexactly(size + 2)
        rest = rest[:-2]
        while b"\n" in rest:
            line, rest = rest.split(b"\n", 1)
            yield line.decode()


class World:
    def __init__(self, cluster):
        self.cluster, self.nodes = cluster, cluster.nodes
        self.https = [Http(node) for node in cluster.nodes]


async def play(cluster, seed, count):
    world, slots, wrong = World(cluster), asyncio.Semaphore(AT_ONCE), []

    async def one(number):
        async with slots:
            try:
                await asyncio.wait_for(Scenario(world, seed + number).run(), PATIENCE_SECONDS)
            except Exception as problem:  # told with the seed that shows it again
                wrong.append(f"seed {seed + number}: {type(problem).__name__}: {problem}")

    await asyncio.gather(*(one(number) for number in range(count)))
    for http in world.https:
        http.close()
    return wrong


def facts(check, binary, seed=None, count=COUNT):
    seed = seed or random.SystemRandom().randrange(1, 2**40)
    print(f"interleavings begin with seed {seed}", flush=True)

    def every_one_is_in_order_and_whole():
        # As many polls as it takes: the limit of polls is a fact of its own.
        with Cluster(binary, extra_toml="[limits]\npolls_per_minute = 0\n") as cluster:
            began = time.monotonic()
            wrong = asyncio.run(play(cluster, seed, count))
        print(f"{count} interleavings in {time.monotonic() - began:.0f} s", flush=True)
        assert not wrong, f"{len(wrong)} of {count}: {wrong[:5]}"

    check(f"{count} interleavings of subscribe, publish, drop and resume lose, double and reorder nothing",
          every_one_is_in_order_and_whole)
