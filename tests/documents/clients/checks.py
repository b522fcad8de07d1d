"""What both Python clients share: facts printed one a line, waiting with an end, plain REST."""

import asyncio
import json
import os
import sys
import urllib.request

NODES = os.environ["NODES"].split(",")
TOKENS = {user: os.environ[f"TOKEN_{user.upper()}"] for user in ("alice", "bob", "carol")}
PATIENCE_SECONDS = 15
failures = []


def node(index):
    return NODES[index % len(NODES)]


def report(name, wrong=None):
    print(f"ok   {name}" if wrong is None else f"FAIL {name}: {type(wrong).__name__}: {wrong}", flush=True)
    if wrong is not None:
        failures.append(name)


async def check(name, test):
    try:
        await test()
    except Exception as wrong:
        report(name, wrong)
    else:
        report(name)


async def until(what, condition):
    """Polls a condition; whoever waits lets the others run."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE_SECONDS
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"{what}: not within {PATIENCE_SECONDS} s")
        await asyncio.sleep(0.005)


def rest(index, method, path, body=None):
    request = urllib.request.Request(
        f"{node(index)}/api/realtime{path}", method=method,
        data=None if body is None else json.dumps(body, separators=(",", ":")).encode(),
        headers={"X-API-Key": os.environ["API_KEY"], "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        data = answer.read()
    return json.loads(data) if data else None


async def post(index, path, body):
    return await asyncio.to_thread(rest, index, "POST", path, body)


def finish():
    sys.exit(1 if failures else 0)
