"""Limits as a client sees them, over three nodes, with the documented codes."""

import asyncio
import json

import websockets


def facts(check, cluster):
    nodes = cluster.nodes

    def url(index, user):
        return f"ws://127.0.0.1:{nodes[index % 3].port}/ws?token={cluster.token(user)}"

    async def answers(connection, count):
        return [json.loads(await asyncio.wait_for(connection.recv(), 10)) for _ in range(count)]

    def run(fact):
        return lambda: asyncio.run(fact())

    async def eleventh_connection():
        held = [await websockets.connect(url(index, "many")) for index in range(10)]
        try:
            await websockets.connect(url(10, "many"))
            raise AssertionError("the 11th connection was admitted")
        except websockets.InvalidStatus as refused:
            assert refused.response.status_code == 429, refused.response
            assert json.loads(refused.response.body)["code"] == "MAX_CONNECTIONS", refused.response.body
        for connection in held:
            await connection.close()

    async def fifty_first_subscription():
        async with websockets.connect(url(0, "broad")) as connection:
            await answers(connection, 1)
            for index in range(51):
                await connection.send(json.dumps({"type": "subscribe", "channel": f"room:limit{index}"}))
            codes = [m["payload"].get("code") for m in await answers(connection, 51)]
            assert codes == [None] * 50 + ["SUBSCRIPTION_LIMIT"], codes

    async def too_many_messages():
        async with websockets.connect(url(1, "chatty")) as connection:
            await answers(connection, 1)
            for _ in range(130):
                await connection.send('{"type":"ping"}')
            refused = [m for m in await answers(connection, 130) if m["type"] == "error"]
            assert 0 < len(refused) <= 30, len(refused)
            assert refused[0]["payload"]["code"] == "RATE_LIMITED", refused[0]
            assert refused[0]["payload"]["details"]["retry_after_ms"] > 0, refused[0]

    async def too_large_a_message():
        async with websockets.connect(url(2, "large")) as connection:
            await answers(connection, 1)
            try:
                await connection.send("x" * (1024 * 1024 + 1))
                await asyncio.wait_for(connection.recv(), 10)
                raise AssertionError("a message over the limit was taken")
            except websockets.ConnectionClosed as closed:
                assert closed.rcvd and closed.rcvd.code == 1009, closed

    check("the 11th connection of a user is refused, whichever node", run(eleventh_connection))
    check("the 51st subscription is refused", run(fifty_first_subscription))
    check("messages over 100 at once are refused, and say when to try again", run(too_many_messages))
    check("a message over 1 MiB closes with 1009", run(too_large_a_message))
