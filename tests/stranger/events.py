"""An event stream as its bytes say it, in the document's own profile: for what an EventSource would read."""

import http.client
import queue
import socket
import threading
import time
import urllib.parse


class EventStream:
    """Events as {"event", "data", "id", "retry", "comment"}, one after the other."""

    def __init__(self, node, token, channels=(), last_event_id=None, path="/api/realtime/events", **query):
        self.inbox = queue.Queue(10_000)
        query = urllib.parse.urlencode([("token", token), *query.items()] + [("channel", c) for c in channels])
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        self.connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
        self.connection.request("GET", f"{path}?{query}", headers=headers)
        # A stream without an end owns its socket, so that closing the connection would not end it.
        self.socket = self.connection.sock
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, f"{self.answer.status} {self.answer.read()[:200]}"
        self.last_id = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        event, data = {}, []
        try:
            while line := self.answer.readline():
                line = line.decode().rstrip("\n").removesuffix("\r")
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not line:
                    if data:
                        self.inbox.put({**event, "data": "\n".join(data)})
                    event, data = {}, []
                elif name == "data":
                    data.append(value)
                elif name:
                    event[name] = value
                else:
                    event["comment"] = value
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # cut: the end of the stream
        self.inbox.put(None)

    def next(self, name=None, seconds=60):
        """The next event, or the next of that name; the others are dropped."""
        end = time.monotonic() + seconds
        seen = []
        while True:
            try:
                event = self.inbox.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no event {name} in {seconds} s; heard {seen}") from None
            assert event is not None, f"the stream ended before {name}; heard {seen}"
            seen.append(event)
            self.last_id = event.get("id", self.last_id)
            if name in (None, event.get("event")):
                return event

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.connection.close()
