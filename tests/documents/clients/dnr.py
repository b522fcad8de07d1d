"""A client as a reader of the DNR document would write it: RealtimeClient with requestId and reconnection, subscriptions that
feed signals, presence with heartbeats, optimistic changes with rollback. Times are a hundredth of the document's."""

import asyncio
import itertools
import json
import os
import time

from checks import TOKENS, check, finish, node, post, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


class Signal:
    def __init__(self, value):
        self.value = value


class RealtimeClient:
    reconnect_interval, attempts_max, heartbeat_interval = 0.01, 10, 0.25

    def __init__(self, user, first=0):
        self.user, self.host = user, first
        self.connected, self.socket, self.wanted = Signal(False), None, True
        self.subscriptions, self.pending, self.handlers = {}, {}, []
        self.numbers, self.heard, self.connects, self.sizes = itertools.count(1), [], 0, []
        self.task = asyncio.create_task(self.run())

    async def run(self):
        attempts = 0
        while self.wanted and attempts < self.attempts_max:
            url = f"{node(self.host).replace('http', 'ws')}/ws?token={TOKENS[self.user]}&profile=dnr"
            try:
                async with connect(url) as self.socket:
                    attempts, self.connects, self.connected.value = 0, self.connects + 1, True
                    beating = asyncio.create_task(self.beat())
                    for channel in self.subscriptions:
                        await self.write({"type": "subscribe", "channel": channel})
                    try:
                        async for text in self.socket:
                            self.on_message(json.loads(text))
                    finally:
                        beating.cancel()
            except (ConnectionClosed, OSError):
                pass
            self.connected.value = False
            attempts += 1
            self.host += 1
            await asyncio.sleep(self.reconnect_interval * attempts)

    async def beat(self):
        while True:
            await asyncio.sleep(self.heartbeat_interval)
            await self.write({"type": "ping"})

    async def write(self, message):
        await self.socket.send(json.dumps({**message, "timestamp": int(time.time() * 1000)}))

    def on_message(self, message):
        assert isinstance(message["timestamp"], int), message
        self.heard.append(message)
        if (waiting := self.pending.pop(message.get("requestId"), None)) is not None:
            waiting.set_result(message)
        for handler in [*self.handlers]:
            handler(message)
        if message["type"].startswith("entity:") and message.get("channel") in self.subscriptions:
            self.subscriptions[message["channel"]](message)

    async def request(self, **message):
        ident = f"req_{next(self.numbers)}"
        self.pending[ident] = asyncio.get_running_loop().create_future()
        waiting = self.pending[ident]
        await self.write({**message, "requestId": ident})
        return await asyncio.wait_for(waiting, 15)

    async def subscribe(self, channel, callback):
        self.subscriptions[channel] = callback
        return await self.request(type="subscribe", channel=channel)

    async def unsubscribe(self, channel):
        del self.subscriptions[channel]
        return await self.request(type="unsubscribe", channel=channel)

    async def close(self):
        self.wanted = False
        await self.socket.close()
        await self.task


class ChannelSubscriber:
    """Keeps a signal in step with an entity's changes."""

    def __init__(self, signal):
        self.signal = signal

    def __call__(self, message):
        data = message["payload"]
        others = [item for item in self.signal.value if item["id"] != data["id"]]
        if message["type"] == "entity:deleted":
            self.signal.value = others
        elif any(item["id"] == data["id"] for item in self.signal.value):
            self.signal.value = [data if item["id"] == data["id"] else item for item in self.signal.value]
        else:
            self.signal.value = [*others, data]


class PresenceManager:
    def __init__(self, client, resource):
        self.client, self.channel, self.users = client, f"presence:{resource}", Signal({})
        client.handlers.append(self.on_message)

    def on_message(self, message):
        if message.get("channel") != self.channel:
            return
        if message["type"] == "presence:sync":
            self.users.value = {user["id"]: user for user in message["payload"]["users"]}
        elif message["type"] == "presence:join":
            self.users.value = {**self.users.value, message["payload"]["id"]: message["payload"]}
        elif message["type"] == "presence:leave":
            gone = message["payload"]["id"]
            self.users.value = {ident: user for ident, user in self.users.value.items() if ident != gone}

    async def join(self):
        assert (await self.client.request(type="presence:join", channel=self.channel))["type"] == "presence:sync"

    async def heartbeat(self):
        return await self.client.request(type="presence:heartbeat", channel=self.channel)

    async def leave(self):
        return await self.client.request(type="presence:leave", channel=self.channel)


class OptimisticManager:
    """Shows a change at once; the backend stores it and tells the gateway, as a repository's hook would."""

    def __init__(self, signal, entity):
        self.signal, self.entity = signal, entity

    async def create(self, data, ident):
        temporary = {**data, "id": f"temp_{time.time_ns()}", "_optimistic": True}
        self.signal.value = [*self.signal.value, temporary]
        try:
            if ident is None:
                raise ValueError("the backend refused")
            result = {**data, "id": ident}
            await post(1, f"/entities/{self.entity}/{ident}/events", {"action": "created", "data": result})
        except ValueError:
            self.signal.value = [item for item in self.signal.value if item["id"] != temporary["id"]]
            raise
        # The event may have come first: one entry either way.
        rest = [item for item in self.signal.value if item["id"] not in (temporary["id"], ident)]
        self.signal.value = [*rest, result]


async def main():
    alice, bob = RealtimeClient("alice", 0), RealtimeClient("bob", 1)
    task = f"Task{os.getpid()}"
    tasks = {"alice": Signal([]), "bob": Signal([])}

    async def connects():
        await until("both are connected", lambda: alice.connected.value and bob.connected.value)
        await until("no welcome but the own stream", lambda: alice.heard)
        assert (alice.heard[0]["type"], alice.heard[0]["channel"]) == ("subscribed", "notifications"), alice.heard[0]

    async def follows_changes():
        for name, client in (("alice", alice), ("bob", bob)):
            reply = await client.subscribe(f"entity:{task}", ChannelSubscriber(tasks[name]))
            assert reply["type"] == "subscribed" and reply["channel"] == f"entity:{task}", reply
        for body in ({"action": "created", "data": {"id": "1", "title": "New task", "status": "open"}},
                     {"action": "updated", "data": {"id": "1", "title": "New task", "status": "done"}}):
            await post(2, f"/entities/{task}/1/events", body)
        await until("both see it done", lambda: all(
            [item.get("status") for item in signal.value] == ["done"] for signal in tasks.values()))
        await post(0, f"/entities/{task}/1/events", {"action": "deleted"})
        await until("both see it gone", lambda: all(signal.value == [] for signal in tasks.values()))

    async def shows_optimistically():
        manager = OptimisticManager(tasks["alice"], task)
        working = asyncio.create_task(manager.create({"title": "mine"}, "5"))
        await until("it shows at once", lambda: any(item["title"] == "mine" for item in tasks["alice"].value))
        await working
        await until("bob sees it", lambda: [item["id"] for item in tasks["bob"].value] == ["5"])
        assert [item["id"] for item in tasks["alice"].value] == ["5"], tasks["alice"].value
        try:
            await manager.create({"title": "refused"}, None)
        except ValueError:
            pass
        assert [item["id"] for item in tasks["alice"].value] == ["5"], "rolled back"

    async def shows_who_is_there():
        resource = f"workspace/{os.getpid()}"
        mine, theirs = PresenceManager(alice, resource), PresenceManager(bob, resource)
        await mine.join()
        assert set(mine.users.value) == {"alice"}, mine.users.value
        await theirs.join()
        await until("both see both", lambda: set(mine.users.value) == set(theirs.users.value) == {"alice", "bob"})
        assert mine.users.value["bob"]["name"] == "Bob" and isinstance(mine.users.value["bob"]["lastSeen"], int)
        assert (await mine.heartbeat())["type"] == "ack"
        await theirs.leave()
        await until("bob is gone", lambda: set(mine.users.value) == {"alice"})

    async def private_channel():
        await post(1, "/users/alice/messages", {"type": "reminder", "payload": {"n": 1}})
        await until("it came", lambda: [m for m in alice.heard if m["type"] == "reminder"])
        assert not [m for m in bob.heard if m["type"] == "reminder"]

    async def refuses_with_errors():
        reply = await alice.request(type="subscribe", channel="user:bob")
        assert reply["type"] == "error" and reply["payload"]["code"] == "FORBIDDEN", reply

    async def reconnects():
        before = len(alice.heard)
        alice.socket.transport.abort()
        await until("connected again", lambda: alice.connects == 2 and alice.connected.value)
        await until("subscribed again", lambda: [
            m for m in alice.heard[before:] if m["type"] == "subscribed" and m["channel"] == f"entity:{task}"])
        await post(0, f"/entities/{task}/8/events", {"action": "created", "data": {"id": "8"}})
        await until("it hears on", lambda: any(item["id"] == "8" for item in tasks["alice"].value))

    async def beats():
        await until("pongs come", lambda: [m for m in bob.heard if m["type"] == "pong"])

    async def leaves():
        assert (await bob.unsubscribe(f"entity:{task}"))["type"] == "unsubscribed"
        await alice.close()
        await bob.close()

    for name, test in (("connects without a welcome", connects), ("follows an entity's changes", follows_changes),
                       ("shows changes optimistically, once", shows_optimistically),
                       ("shows who is there", shows_who_is_there), ("hears its private channel", private_channel),
                       ("is told what it may not", refuses_with_errors),
                       ("reconnects, subscribes again and hears on", reconnects),
                       ("is answered when it beats", beats), ("unsubscribes and closes", leaves)):
        await check(f"dnr client: {name}", test)


asyncio.run(main())
finish()
