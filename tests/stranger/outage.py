"""Redis that is not there yet, or goes away: nodes live on, say so, and come back by themselves. A node that ends politely."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

from harness import Cluster, wait_until


def facts(check, binary):
    def starts_before_redis():
        with Cluster(binary, nodes=2, redis=False) as cluster:
            for node in cluster.nodes:
                wait_until("live", lambda n=node: n.health("live") == 200, process=node)
                assert node.health("ready") == 503, node.health("ready")
            a, b = cluster.nodes
            answer = cluster.post(a, "/publish", {"channel": "chat", "type": "message", "payload": 1})
            assert answer.status == 503 and answer.code == "UNAVAILABLE", answer
            assert answer.headers["Retry-After"], "no Retry-After"
            cluster.begin_redis()
            for node in cluster.nodes:
                wait_until("ready", node.ready, process=node)
            with cluster.ws(a, "ann", "chat") as one:
                cluster.publish(b, "chat", "now")
                one.wait_payload("now")

    def survives_redis():
        with Cluster(binary, nodes=2) as cluster:
            a, b = cluster.nodes
            with cluster.ws(a, "ann", "chat") as one, cluster.sse(b, "ben", "chat") as two:
                cluster.publish(a, "chat", "before")
                one.wait_payload("before"), two.wait_payload("before")
                cluster.redis.kill()
                wait_until("not ready", lambda: not a.ready())
                answer = cluster.post(
                    a, "/publish", {"channel": "chat", "type": "message", "payload": 1})
                assert answer.status == 503 and answer.code == "UNAVAILABLE", answer
                assert a.alive() and b.alive() and a.health("live") == 200
                cluster.begin_redis()
                for node in cluster.nodes:
                    wait_until("ready again", node.ready, process=node)
                # Its data was not kept: both are told, neither was cut.
                one.wait_type("resync"), two.wait_type("resync")
                cluster.publish(b, "chat", "after")
                one.wait_payload("after"), two.wait_payload("after")

    def few_clients_leave_over_the_whole_period():
        settings = '[drain]\nperiod = "4s"\ngrace = "0s"\n'
        with Cluster(binary, nodes=1, extra_toml=settings) as cluster:
            node = cluster.nodes[0]
            listeners = [cluster.ws(node, f"user-{n}", "chat") for n in range(4)]
            for listener in listeners:
                listener.wait_type("connect")
            node.send(signal.SIGTERM)

            def sent_away(listener):
                told = listener.wait_type("disconnect")
                moment = time.monotonic()
                listener.wait_closed()
                assert told["payload"]["reconnect"] is True, told
                return moment
            with ThreadPoolExecutor(len(listeners)) as pool:
                left = sorted(pool.map(sent_away, listeners))
            assert node.child.wait(30) == 0
            # One a second; nothing holds them back, but a busy machine may be late with the first.
            assert left[-1] - left[0] > 2, [moment - left[0] for moment in left]

    check("few clients leave a draining node over its whole period", few_clients_leave_over_the_whole_period)
    check("nodes started before Redis are live, not ready, and become ready", starts_before_redis)
    check("Redis killed: no client is cut, publishes answer 503, all is told when it is back",
          survives_redis)
