"""What operators see and type: every series of `/metrics`, a look inside, `carillon top`, settings that say what they are not."""

import json
import os
import re
import socket
import subprocess
import urllib.request

from harness import Cluster, WsListener, call, wait_until

# operations.md 4, in its order.
SERIES = [
    'connections{transport="websocket"}', 'connections_opened_total{transport="sse"}',
    'connections_closed_total{reason="client"}', 'connections_closed_total{reason="slow consumer"}',
    'connections_resumed_total{transport="sse"}', 'recoveries_total{outcome="recovered"}',
    "messages_in_total", "deliveries_total", 'messages_dropped_total{reader="closed"}', "received_bytes_total",
    "sent_bytes_total", 'fan_out_connections_bucket{le="+Inf"}', 'publish_to_socket_seconds_bucket{le="+Inf"}',
    'publish_errors_total{code="UNAVAILABLE"}', "queue_bytes", "slow_consumers_total", "subscriptions",
    'redis_round_trip_seconds_bucket{le="+Inf"}', "redis_reconnects_total", "gap_fills_total",
    'refusals_total{code="RATE_LIMITED"}', 'refusals_total{code="INVALID_TOKEN"}',
    'build_info{version="0.1.0"}',
]


def ask(node, path):
    url = f"http://127.0.0.1:{node.operator_port}{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def series(node):
    """Name with labels to value."""
    lines = (line.rsplit(" ", 1) for line in ask(node, "/metrics").splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def carillon(binary, *argv, **env):
    return subprocess.run([binary, *argv], text=True, capture_output=True, timeout=60, env={**os.environ, **env},
                          stdin=subprocess.DEVNULL)


def facts(check, binary):
    with Cluster(binary, nodes=2) as cluster:
        check("every number that operators are promised is there from the start", promised, cluster)
        check("a new channel makes no new series", bounded, cluster)
        check("refusals, dropped publishes, bytes and resumed connections are counted", counted, cluster)
        check("the cluster's load is in its statistics", loaded, cluster)
        check("the operators' port shows the configuration without secrets, and the node", inside, cluster)
        check("carillon top shows nodes and rates, as text and as JSON", top, binary, cluster)
    check("check-config says what a setting does not do", warned, binary)
    check("what cannot be meant is refused, and said once: levels, tokens, keys, a taken port", refused, binary)


def promised(cluster):
    a, b = cluster.nodes
    shown = series(b)
    missing = [name for name in SERIES if f"carillon_{name}" not in shown]
    assert not missing, missing
    wait_until("a round trip to Redis", lambda: series(a)["carillon_redis_round_trip_seconds_count"] > 0, process=a)


def bounded(cluster):
    a, _ = cluster.nodes
    with cluster.ws(a, "ann", "room:first") as ann:
        cluster.publish(a, "room:first", 0)
        ann.wait_payload(0)
        wait_until("it was counted", lambda: series(a)["carillon_publish_to_socket_seconds_count"] > 0, process=a)
        before = set(series(a))
        for n in range(20):
            ann.request(type="subscribe", channel=f"room:series-{n}")
            cluster.publish(a, f"room:series-{n}", n)
            ann.wait_payload(n)
        assert set(series(a)) == before, set(series(a)) - before


def counted(cluster):
    a, _ = cluster.nodes
    before = series(a)

    def more(name):
        return series(a)[f"carillon_{name}"] - before[f"carillon_{name}"]
    assert call(a, "GET", "/stats").status == 401
    assert call(a, "GET", "/stats", headers={"Authorization": "Bearer nonsense"}).status == 401
    assert cluster.post(a, "/publish", {"channel": "nowhere:x", "type": "m"}).status == 404
    cluster.post(a, "/publish/batch", {"messages": [{"channel": "nowhere:x", "type": "m"}] * 2})
    with WsListener(a, cluster.token("cou")) as one:
        one.wait_type("connect")
        one.send(type="subscribe", channel="user:other")
        one.wait_type("error")
        # One read of many: the bucket cannot be refilled between them.
        one.burst([{"type": "ping"}] * 130)
        one.wait(lambda m: m["type"] == "error" and m["payload"]["code"] == "RATE_LIMITED", "a refusal")
    with cluster.sse(a, "cou", "room:counted") as stream:
        cluster.publish(a, "room:counted", "x" * 10_000)
        last = stream.wait_payload("x" * 10_000)["_id"]
    cluster.sse(a, "cou", "room:counted", last_event_id=last).close()
    assert more('refusals_total{code="MISSING_TOKEN"}') == 1
    assert more('refusals_total{code="INVALID_TOKEN"}') == 1
    assert more('refusals_total{code="FORBIDDEN"}') == 1
    assert more('refusals_total{code="CHANNEL_NOT_FOUND"}') == 1, "a batch's own answer is 200"
    assert more('publish_errors_total{code="CHANNEL_NOT_FOUND"}') == 3
    wait_until("all refusals", lambda: more('refusals_total{code="RATE_LIMITED"}') >= 20, process=a)
    assert more('connections_resumed_total{transport="sse"}') == 1
    assert more("received_bytes_total") > 130 * 20 and more("sent_bytes_total") > 10_000
    wait_until("both streams are closed", lambda: more('connections_closed_total{reason="client"}') >= 3, process=a)


def loaded(cluster):
    _, b = cluster.nodes

    def busy():
        loads = [node["load"] for node in cluster.get(b, "/stats").json["nodes"]]
        assert all(isinstance(load, (int, float)) and load >= 0 for load in loads), loads
        # As of the last heartbeat, which a starved machine may let wait.
        return len(loads) == 2 and any(load > 0 for load in loads)
    wait_until("both nodes are there and one shows a load", busy, process=b)


def inside(cluster):
    a, b = cluster.nodes
    config = ask(a, "/debug/config")
    assert "[limits]" in config and a.name in config, config[:200]
    assert cluster.keys.jwt not in config and cluster.keys.api_key not in config, "a secret is shown"
    wait_until("the lease tells of the other",
               lambda: set(json.loads(ask(a, "/debug/node"))["nodes"]) == {a.name, b.name}, 60, a)
    with cluster.ws(a, "ins", "room:inside"):
        shown = json.loads(ask(a, "/debug/node"))
        assert shown["name"] == a.name and shown["connections"]["websocket"] >= 1, shown
        assert shown["subscriptions"] >= 2 and shown["resident_bytes"] > 1 << 20, shown
    assert set(json.loads(ask(b, "/debug"))) == {"/debug/config", "/debug/node"}
    assert call(a, "GET", "/debug/config", base="").status == 404, "clients must not see it"


def top(binary, cluster):
    a, b = cluster.nodes
    with cluster.ws(b, "top", "room:top"):
        wait_until("the lease tells of it", lambda: sum(
            node["connections"]["websocket"] for node in cluster.get(a, "/stats").json["nodes"]) >= 1, 20, a)
        seen = carillon(binary, "top", "--url", a.http, "--api-key", cluster.keys.api_key, "--count", "2",
                        "--interval", "200ms")
        assert seen.returncode == 0, seen
        first, second = seen.stdout.split("nodes 2   redis up")[1:]
        for name in (a.name, b.name):
            assert re.search(rf"^{name} +\d+m? ?\d*s? .*0\.1\.0$", second, re.M), seen.stdout
        total = next(line.split() for line in second.splitlines() if line.startswith("all"))
        assert int(total[1]) >= 1 and total[4] != "-", total
        assert " - " in first, "a rate before there was a second look"
    seen = carillon(binary, "top", "--json", "--count", "1", CARILLON_URL=b.http, CARILLON_API_KEY=cluster.keys.api_key)
    assert json.loads(seen.stdout)["totals"]["nodes"] == 2, seen
    seen = carillon(binary, "top", "--url", a.http, "--api-key", "wrong", "--count", "1")
    assert seen.returncode == 1 and "401" in seen.stderr, seen
    seen = carillon(binary, "top", "--url", "http://127.0.0.1:1", "--count", "1")
    assert seen.returncode == 1 and seen.stderr.startswith("-- "), seen


def warned(binary):
    seen = carillon(binary, "check-config", "--dev", "--set", "otel.endpoint=http://collector:4318",
                    "--set", "limits.queue_bytes=0")
    assert seen.returncode == 0 and "exports no traces" in seen.stderr and "without a bound" in seen.stderr, seen
    seen = carillon(binary, "check-config", "--set", "console.enabled=true", "--set", "auth.jwt.secret=" + "s" * 32)
    assert seen.returncode == 0 and "serves no console" in seen.stderr, seen


def refused(binary):
    for level in ("verbose", "inof"):
        seen = carillon(binary, "check-config", "--dev", "--set", f"log.level={level}")
        assert seen.returncode == 1 and "log.level" in seen.stderr, (level, seen)
    for level in ("debug", "WARN", "off", "info,carillon_gateway=trace"):
        seen = carillon(binary, "check-config", "--dev", "--set", f"log.level={level}")
        assert seen.returncode == 0, (level, seen)
    secret = ["--secret", "s" * 32]
    for argv in (["--user", ""], ["--user", "a", "--channels", '{"subscribe":"x"}'], ["--user", "a", "--channels", "[1]"],
                 ["--user", "a", "--channels", '{"hear":["x"]}'], ["--user", "a", "--ttl", "5x"]):
        seen = carillon(binary, "token", *argv, *secret)
        assert seen.returncode != 0 and seen.stderr and not seen.stdout, (argv, seen)
    for argv in (["--channels", "a,b.*"], ["--channels", '{"subscribe":["x"],"presence":[]}'], ["--ttl", "7d"]):
        seen = carillon(binary, "token", "--user", "a", *argv, *secret)
        assert seen.returncode == 0 and seen.stdout.count(".") == 2, (argv, seen)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        seen = carillon(binary, "serve", "--dev", "--listen", address, "--operator-listen", "127.0.0.1:0")
        assert seen.returncode == 1 and seen.stderr.count("Address already in use") == 1 and address in seen.stderr, seen
    seen = carillon(binary, "hash-key", "")
    assert seen.returncode == 1 and "empty" in seen.stderr, seen
