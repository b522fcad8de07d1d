"""MessagePack and binary payloads: what one client packs, every other reads in its own manner, live and from history, over three nodes."""

import base64
import json
import urllib.parse

import msgpack

from harness import PATIENCE_SECONDS, call
from websockets.sync.client import connect

RAW = bytes(range(256)) * 3
PAYLOAD = {"bytes": RAW, "none": b"", "list": [b"x", True, None, -1, 1.5], "text": "ü\x00", "big": 2**64 - 1, "small": -2**63}


def as_json(value):
    """How a reader of JSON sees it: binary as base64 text (R24)."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list) else value


class Packed:
    """A WebSocket that speaks MessagePack."""

    def __init__(self, cluster, node, user, **query):
        query = urllib.parse.urlencode({"token": cluster.token(user), **query})
        self.socket = connect(f"{node.ws}/ws?{query}", subprotocols=["carillon.msgpack"], open_timeout=PATIENCE_SECONDS)
        assert self.socket.subprotocol == "carillon.msgpack"

    def send(self, message):
        self.socket.send(message if isinstance(message, bytes) else msgpack.packb(message))

    def wait(self, matches):
        while True:
            frame = self.socket.recv(PATIENCE_SECONDS)
            assert isinstance(frame, bytes), frame
            message = msgpack.unpackb(frame)
            if matches(message):
                return message

    def request(self, **message):
        self.send({"ack_id": "a", **message})
        return self.wait(lambda m: m.get("ack_id") == "a" and m["type"] in ("ack", "error"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def facts(check, cluster):
    a, b, c = cluster.nodes

    def every_reader():
        room, user = "room:packed", "pol"
        headers = {"Authorization": f"Bearer {cluster.token(user)}"}

        def poll(last):
            query = urllib.parse.urlencode({"user_id": user, "last_poll_id": last, "channels": room, "timeout": 0 if not last else 20})
            return call(c, "GET", f"/poll?{query}", None, headers, base="/api/v1/realtime").json
        last = poll(0)["last_poll_id"]
        profiles = ("social", "uno", "dnr", "excore")
        packed = [Packed(cluster, (a, b, c)[n % 3], f"pk{n}", profile=profile, channel=room) for n, profile in enumerate(profiles)]
        with Packed(cluster, a, "pack") as sender, cluster.ws(b, "txt", room) as text, \
                cluster.sse(c, "sse", room) as stream:
            for one in packed:
                one.wait(lambda m: m["type"] == "subscribed" and m["channel"] == room)
            for payload in (RAW, PAYLOAD):
                ack = sender.request(type="message", channel=room, payload=payload)
                assert ack["type"] == "ack" and set(ack["payload"]["data"]) >= {"id", "offset", "epoch", "tag"}, ack
                for one, profile in zip(packed, profiles):
                    heard = one.wait(lambda m: m["type"] == "message")
                    assert heard["payload"] == payload and heard["user_id"] == "pack", (profile, heard)
                    assert isinstance(heard["timestamp"], int if profile == "dnr" else str), (profile, heard)
                for listener in (text, stream):
                    assert listener.wait_type("message")["payload"] == as_json(payload), type(listener)
                answer = poll(last)
                assert [e["payload"] for e in answer["events"]] == [as_json(payload)], answer
                last = answer["last_poll_id"]
            for one in packed:
                one.socket.close()
        history = cluster.get(a, f"/channels/{room}/history").json["messages"]
        assert [m["payload"] for m in history] == [as_json(RAW), as_json(PAYLOAD)], history
        # From history as live, on a node that has not heard it.
        with Packed(cluster, b, "late") as late:
            since = {key: history[0][key] for key in ("offset", "epoch", "tag")}
            answer = late.request(type="subscribe", channel=room, payload={"since": since})
            assert answer["payload"]["data"]["recovered"] is True, answer
            assert late.wait(lambda m: m["type"] == "message")["payload"] == PAYLOAD

    def what_json_said():
        with Packed(cluster, a, "hear", channel="room:said") as one, cluster.ws(b, "say", "room:said") as two:
            one.wait(lambda m: m["type"] == "subscribed" and m["channel"] == "room:said")
            payload = {"n": [1, 2.5, None, True], "t": "é\u2028\U0001f514", "o": {"": {}}, "i": -(2**53)}
            assert two.request(type="message", channel="room:said", payload=payload)["type"] == "ack"
            assert one.wait(lambda m: m["type"] == "message")["payload"] == payload
            cluster.publish(c, "room:said", payload, type="backend")
            assert one.wait(lambda m: m["type"] == "backend")["payload"] == payload

    def every_request():
        with Packed(cluster, a, "req") as one:
            for message, reply in [
                ({"type": "subscribe", "channel": "room:req"}, "subscribed"), ({"type": "ping"}, "pong"),
                ({"type": "heartbeat"}, "heartbeat"), ({"type": "presence:join", "channel": "presence:req"}, "presence:sync"),
                ({"type": "presence:heartbeat", "channel": "presence:req"}, None),
                ({"type": "presence:leave", "channel": "presence:req"}, None),
                ({"type": "presence", "payload": {"status": "busy"}}, None),
                ({"type": "typing_start", "channel": "room:req", "payload": {}}, None),
                ({"type": "typing:start", "payload": {"channel": "room:req"}}, None),
                ({"type": "read_receipt", "channel": "room:req", "payload": {"message_ids": ["m"]}}, None),
                ({"type": "chat:send", "payload": {"channel": "room:req", "text": "hi"}}, None),
                ({"type": "notification_read_all"}, None), ({"type": "auth", "payload": {"token": cluster.token("req")}}, None),
                ({"type": "order", "payload": RAW}, None), ({"type": "unsubscribe", "channel": "room:req"}, "unsubscribed"),
            ]:
                one.send({**message, "ack_id": "a", "requestId": "r"})
                if reply:
                    heard = one.wait(lambda m: m["type"] == reply)
                    assert heard["requestId"] == "r" and "ack_id" not in heard, heard
                ack = one.wait(lambda m: m.get("ack_id") == "a")
                assert ack["type"] == "ack" and ack["payload"]["status"] == "success", (message, ack)

    def routed():
        room = "conversation:packed"
        with Packed(cluster, a, "rou") as sender, Packed(cluster, b, "rea", channel=room) as packed, cluster.ws(c, "txt", room) as text:
            packed.wait(lambda m: m["type"] == "subscribed" and m["channel"] == room)
            for kind, heard_as, payload in [
                ("typing_start", "typing_start", {"cursor": {"at": RAW, "f": 1.0}}), ("read_receipt", "read_receipt", {"mark": RAW}),
                ("chat:send", "chat:message", {"text": RAW}), ("chat:message", "chat:message", {"text": RAW, "userId": "forged"}),
            ]:
                sender.send({"type": kind, "channel": room, "payload": payload})
                binary, plain = packed.wait(lambda m: m["type"] == heard_as)["payload"], text.wait_type(heard_as)["payload"]
                came = {name: value for name, value in payload.items() if name != "userId"}
                assert {name: binary[name] for name in came} == came, (kind, binary)
                assert as_json(binary) == plain, (kind, binary, plain)
                assert "rou" in (binary.get("user_id"), binary.get("userId")), (kind, binary)

    def garbled():
        deep = "x"
        for _ in range(130):
            deep = [deep]
        with Packed(cluster, b, "gar") as one:
            for bad in [b"", b"\xc1", b"\x81\xa4type", b"\x81\xa4type\x05", b"\x91\x01", msgpack.packb({b"type": "ping"}),
                        b"\x82\xa4type\xa4ping\xa4type\xa4ping", msgpack.packb({"type": "ping"}) + b"\x00",
                        b"\x81\xa4type\xa4pi\xffg",
                        *(msgpack.packb({"type": "message", "channel": "room:gar", "payload": payload}) for payload in (
                            {1: 2}, float("nan"), float("-inf"), msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 0), deep))]:
                one.send(bad)
                answer = one.wait(lambda m: m["type"] in ("error", "pong", "ack", "message"))
                assert answer["type"] == "error" and answer["payload"]["code"] == "INVALID_MESSAGE", (bad, answer)
                assert answer["payload"]["details"], (bad, answer)
            one.send({"type": "ping"})
            one.wait(lambda m: m["type"] == "pong")

    def inbound():
        data = {}
        with Packed(cluster, c, "inb") as one:
            data = one.request(type="upload", payload=PAYLOAD)["payload"]["data"]
        import redis
        store = redis.Redis(port=cluster.redis.port, decode_responses=True, protocol=2)
        [(_, fields)] = store.xrange("carillon:inbound", data["id"], data["id"])
        assert json.loads(fields["data"])["payload"] == as_json(PAYLOAD), fields

    check("a packed payload reaches all profiles as binary, JSON, streams, polls and history as base64", every_reader)
    check("what the server writes its sender into stays binary: routes, relays, receipts", routed)
    check("what JSON and backends say reaches MessagePack whole", what_json_said)
    check("every request is answered in MessagePack, with both correlations", every_request)
    check("garbled MessagePack is INVALID_MESSAGE and says where; the connection lives on", garbled)
    check("the application reads binary as base64", inbound)
