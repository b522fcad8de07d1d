"""SIGHUP: keys, namespaces, routes, limits and log level change under live connections, all or nothing."""

import json
import shutil
import signal
import tempfile
import time

from harness import Node, Secrets, WsListener, call, told_by, wait_until

LIMITS = "[limits]\nmessages_per_second = {rate}\nmax_message_size = {size}\n[log]\nlevel = \"{level}\"\n"


class Alone:
    """One node with the embedded broker, whose configuration file may be rewritten."""

    def __init__(self, binary, extra_toml=""):
        self.directory = tempfile.mkdtemp(prefix="carillon-reload-")
        self.keys = Secrets()
        self.node = Node(binary, self.directory, "alone", self.keys, extra_toml=extra_toml)

    def __enter__(self):
        self.node.start()
        wait_until("ready", self.node.ready, process=self.node)
        with open(self.node.config_path) as file:
            self.text = file.read()
        return self

    def __exit__(self, *_):
        self.node.kill()
        told_by(self.node)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self):
        with open(self.node.log_path, errors="replace") as log:
            return log.read()

    def reload(self, text, words):
        """Rewrites the file, says SIGHUP and waits until the log answers it with `words`."""
        before = self.log().count(words)
        with open(self.node.config_path, "w") as file:
            file.write(text)
        self.node.send(signal.SIGHUP)
        wait_until(words, lambda: self.log().count(words) > before, process=self.node)

    def pings(self, listener, count):
        """How many of `count` pings at once are answered, after a bucket's rest (its run of abuse is over then)."""
        time.sleep(1.1)
        listener.burst([{"type": "ping", "requestId": f"{count}-{n}"} for n in range(count)])
        answers = [listener.wait(lambda m, n=n: m.get("requestId") == f"{count}-{n}", "an answer")
                   for n in range(count)]
        return sum(m["type"] == "pong" for m in answers)


def facts(check, binary):
    def everything_changes_and_nobody_is_cut():
        slow = LIMITS.format(rate=5, size=1000, level="info")
        with Alone(binary, slow) as alone:
            node, keys = alone.node, alone.keys
            with WsListener(node, keys.token("ann"), ["chat"]) as ann:
                ann.wait_live(["chat"])
                assert alone.pings(ann, 8) <= 6
                assert " DEBUG " not in alone.log()
                old = keys.token("ben")
                new = Secrets()
                quick = LIMITS.format(rate=500, size=3000, level="debug")
                text = (alone.text.replace(slow, quick).replace(keys.jwt, new.jwt)
                        + '[[namespaces]]\npattern = "fresh:{id}"\nsubscribe = ["authenticated"]\n'
                        + 'publish = ["authenticated"]\n[[routes]]\nfrom = "shout"\nto = "loud"\n')
                alone.reload(text, "configuration reloaded")
                # The limits of a connection that was there before.
                wait_until("the old bucket is refilled", lambda: alone.pings(ann, 60) == 60)
                ann.send(type="subscribe", channel="fresh:1", ack_id="s")
                assert ann.wait(lambda m: m.get("ack_id") == "s", "an answer")["type"] == "ack"
                answer = ann.request(type="message", channel="fresh:1", payload="x" * 2000)
                assert answer["type"] == "ack", answer
                ann.send(type="shout", channel="fresh:1", payload={"text": "hey"}, ack_id="r")
                ann.wait_type("loud")
                # The other namespaces are gone, the old key too.
                ann.send(type="subscribe", channel="chat.other", ack_id="gone")
                refused = ann.wait(lambda m: m.get("ack_id") == "gone", "an answer")
                assert refused["payload"]["code"] == "CHANNEL_NOT_FOUND", refused
                poll = "/api/v1/realtime/poll?timeout=1&user_id=ben&token="
                assert call(node, "GET", poll + old, base="").code == "INVALID_TOKEN"
                assert call(node, "GET", poll + new.token("ben"), base="").status == 200
                # A connection's end is worth a line of that level.
                WsListener(node, new.token("ben")).close()
                wait_until("the log has the new level", lambda: " DEBUG " in alone.log(), process=node)

    def a_bad_configuration_changes_nothing():
        with Alone(binary, LIMITS.format(rate=5, size=1000, level="info")) as alone:
            with WsListener(alone.node, alone.keys.token("ann")) as ann:
                ann.wait_type("connect")
                refused = "the configuration was not reloaded"
                wrong = alone.text.replace("messages_per_second = 5", "messages_per_second = 500")
                alone.reload(wrong + '[[namespaces]]\npattern = "a**b"\n', refused)
                assert "namespaces[0].pattern" in alone.log(), "the log does not say why"
                alone.reload(wrong + "[limitz]\nx = 1\n", refused)
                assert "limitz.x" in alone.log()
                alone.reload("no toml at all", refused)
                assert alone.pings(ann, 20) <= 8
                alone.reload(wrong, "configuration reloaded")
                wait_until("the new limit", lambda: alone.pings(ann, 60) == 60)

    def what_is_refused_now_ends():
        mine = '[[namespaces]]\npattern = "{}"\nsubscribe = ["{}"]\n'
        kept, gone, shut = (mine.format(*row) for row in (
            ("keep:{id}", "authenticated"), ("gone:{id}", "authenticated"), ("shut:{id}", "authenticated")))
        with Alone(binary, kept + gone + shut) as alone:
            channels = ["keep:1", "gone:1", "shut:1"]
            with WsListener(alone.node, alone.keys.token("ann"), channels) as ann:
                ann.wait_live(channels)
                alone.reload(alone.text.replace(gone, "").replace(shut, mine.format("shut:{id}", "granted")),
                             "configuration reloaded")
                ended = {}
                while len(ended) < 2:
                    error = ann.wait_type("error")
                    ended[error["channel"]] = error["payload"]["code"]
                assert ended == {"gone:1": "CHANNEL_NOT_FOUND", "shut:1": "FORBIDDEN"}, ended
                for channel in ("shut:1", "keep:1"):
                    answer = call(alone.node, "POST", "/publish", {"channel": channel, "type": "m", "payload": channel},
                                  {"X-API-Key": alone.keys.api_key})
                    assert answer.status == 200, answer
                ann.wait_payload("keep:1")
                assert ann.times("shut:1") == 0, "what is refused now is still heard"

    def no_bound_on_the_queue():
        with Alone(binary, "[limits]\nqueue_bytes = 0\n") as alone:
            assert "without a bound" in alone.log(), "nobody was warned"
            with WsListener(alone.node, alone.keys.token("ann"), ["room:1"]) as ann:
                ann.wait_live(["room:1"])
                for n in range(3):
                    assert call(alone.node, "POST", "/publish", {"channel": "room:1", "type": "m", "payload": n},
                                {"X-API-Key": alone.keys.api_key}).status == 200
                ann.wait_payload(2)
                assert ann.payloads("m") == [0, 1, 2], ann.heard

    def what_needs_a_restart_is_named():
        with Alone(binary) as alone:
            moved = alone.text.replace('id = "alone"', 'id = "moved"')
            alone.reload(moved, "configuration reloaded")
            assert 'needs_restart=["node"]' in alone.log(), alone.node.log_tail()
            stats = call(alone.node, "GET", "/stats", headers={"X-API-Key": alone.keys.api_key})
            assert '"alone"' in json.dumps(stats.json), stats

    check("SIGHUP: limits, keys, namespaces, routes and log level change, nobody is cut",
          everything_changes_and_nobody_is_cut)
    check("SIGHUP: a bad configuration changes nothing and says why", a_bad_configuration_changes_nothing)
    check("SIGHUP: a live subscription that no namespace allows any more ends with an error, others go on",
          what_is_refused_now_ends)
    check("queue_bytes = 0 switches that limit off, and says what it means", no_bound_on_the_queue)
    check("SIGHUP: what only a restart can change is named and stays", what_needs_a_restart_is_named)
