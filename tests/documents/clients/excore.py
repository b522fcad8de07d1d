"""Clients as a reader of the ExCore document would write them: an event stream by its fields, and a WebSocket that switches on
message types, both with the channel in the query."""

import asyncio
import json
import os
import threading

import requests
import sseclient
from checks import TOKENS, check, finish, node, post, until
from websockets.asyncio.client import connect


class Events:
    """An EventSource: handlers by event name, on a thread of its own."""

    def __init__(self, index, user, channel):
        self.heard, self.handlers = [], {}
        self.answer = requests.get(f"{node(index)}/api/events", stream=True, timeout=(10, 60),
                                   headers={"Accept": "text/event-stream"},
                                   params={"channel": channel, "token": TOKENS[user]})
        self.answer.raise_for_status()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for event in sseclient.SSEClient(self.answer).events():
                self.heard.append((event.event, json.loads(event.data)))
                self.handlers.get(event.event, lambda data: None)(json.loads(event.data))
        except Exception:  # closed by us: the stream has no other end
            pass

    def names(self):
        return [name for name, _ in self.heard]

    def close(self):
        self.answer.raw._fp.fp.raw._sock.shutdown(2) if hasattr(self.answer.raw._fp, "fp") else None
        self.answer.close()


class Chat:
    """`new WebSocket('/?channel=general')` with a switch on the type."""

    def __init__(self, socket):
        self.socket, self.welcome, self.messages, self.typing, self.notifications = socket, None, [], [], []
        self.joined, self.errors = False, []
        self.task = asyncio.create_task(self.read())

    async def read(self):
        async for text in self.socket:
            message = json.loads(text)
            kind, payload = message["type"], message.get("payload")
            if kind == "connected":
                self.welcome = payload["message"]
            elif kind == "subscribed" and message["channel"] == "general":
                self.joined = True
            elif kind == "chat:message":
                self.messages.append(payload)
            elif kind == "typing:indicator":
                self.typing.append(payload["userId"])
            elif kind == "notification":
                self.notifications.append((payload["title"], payload["body"]))
            elif kind == "error":
                self.errors.append(payload["code"])

    async def send(self, kind, **payload):
        await self.socket.send(json.dumps({"type": kind, "payload": payload}))


async def main():
    streams = {}

    async def streams_open():
        streams["metrics"] = await asyncio.to_thread(Events, 0, "alice", "dashboard")
        streams["admin"] = await asyncio.to_thread(Events, 1, "bob", "admin-dashboard")
        await until("both are welcomed", lambda: all("connected" in s.names() for s in streams.values()))
        assert streams["metrics"].heard[0][1]["message"] == "Connected to event stream", streams["metrics"].heard[0]
        await until("both listen", lambda: all("subscribed" in s.names() for s in streams.values()))

    async def streams_hear():
        shown = []
        streams["metrics"].handlers["metric-update"] = shown.append
        await post(2, "/publish", {"channel": "dashboard", "type": "metric-update",
                                   "payload": {"activeUsers": 1542, "requestsPerSecond": 230}})
        await post(0, "/publish", {"channel": "admin-dashboard", "type": "user:registered",
                                   "payload": {"userId": "u1", "email": "u@example.org"}})
        await post(1, "/users/alice/messages", {"type": "notification", "payload": {"title": "New", "body": "one"}})
        await post(1, "/broadcast", {"type": "system-announcement", "payload": {"message": "soon"}})
        await until("figures", lambda: shown == [{"activeUsers": 1542, "requestsPerSecond": 230}])
        await until("the others", lambda: {"notification", "system-announcement"} <= set(streams["metrics"].names())
                    and {"user:registered", "system-announcement"} <= set(streams["admin"].names()))
        assert "notification" not in streams["admin"].names() and "metric-update" not in streams["admin"].names()

    def url(index, user):
        return f"{node(index).replace('http', 'ws')}/?channel=general&token={TOKENS[user]}"

    async def chats():
        async with connect(url(0, "alice")) as first, connect(url(1, "carol")) as second:
            alice, carol = Chat(first), Chat(second)
            await until("both joined", lambda: alice.joined and carol.joined)
            assert alice.welcome == "Connected to WebSocket server", alice.welcome
            mark = f"hello {os.getpid()}"
            await alice.send("typing:start", channel="general")
            await alice.send("chat:send", text=mark, channel="general")
            await until("both heard it", lambda: all(
                [m["userId"] for m in chat.messages if m["text"] == mark] == ["alice"] for chat in (alice, carol)))
            await until("carol saw the typing", lambda: "alice" in carol.typing)
            assert "alice" not in alice.typing
            assert all(isinstance(m["timestamp"], int) for m in carol.messages), carol.messages
            await post(2, "/users/carol/messages",
                       {"type": "notification", "payload": {"title": "New Message", "body": "You have one"}})
            await until("the notification", lambda: carol.notifications == [("New Message", "You have one")])
            assert alice.notifications == []
            await carol.send("chat:send", text="nowhere", channel="nowhere")
            await until("the error", lambda: carol.errors == ["CHANNEL_NOT_FOUND"])

    async def closes():
        for stream in streams.values():
            stream.close()

    await check("excore client: streams are welcomed and join the query's channel", streams_open)
    await check("excore client: streams hear channel, user and broadcast by event name", streams_hear)
    await check("excore client: chat, typing and notifications over a WebSocket", chats)
    await check("excore client: streams close", closes)


asyncio.run(main())
finish()
