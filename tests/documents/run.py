#!/usr/bin/env python3
"""Each document, top to bottom, on one embedded node and on three over Redis; then each document's own client.

One line a fact, then `N passed, N failed`.
"""

import argparse
import importlib
import os
import subprocess
import sys

from stage import Stage

import side_by_side  # noqa: I001 (stage puts it on the path)
from harness import Facts

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENTS = ["socialhub", "dnr", "excore", "enzyme", "uno", "contract"]
# What a user of the document would have written, in the document's own manner.
CLIENTS = [("socialhub", ["node", "clients/socialhub.mjs"]), ("dnr", [sys.executable, "clients/dnr.py"]),
           ("excore", [sys.executable, "clients/excore.py"]), ("enzyme", ["node", "clients/enzyme.mjs"])]


def client(facts, stage, name, argv):
    """Runs a client script; its lines are facts, and ending badly is one."""
    env = {**os.environ, "NODES": ",".join(node.http for node in stage.nodes), "API_KEY": stage.keys.api_key,
           **{f"TOKEN_{user.upper()}": stage.token(user, name=user.capitalize(),
                                                   channels={"subscribe": ["admin-dashboard"]})
              for user in ("alice", "bob", "carol")}}
    argv = [argv[0], os.path.join(HERE, argv[1])]
    done = subprocess.run(argv, env=env, text=True, capture_output=True, timeout=180)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok   ", "FAIL "))]
    for line in lines:
        print(line, flush=True)
        facts.passed += line.startswith("ok")
        facts.failed += line.startswith("FAIL")
    if not lines or done.returncode != 0 and not any(line.startswith("FAIL") for line in lines):
        facts.failed += 1
        print(f"FAIL the {name} client ended with {done.returncode}: {done.stderr[-2000:]}", flush=True)


def play(binary, shape, only, facts):
    """One after the other on one stage, in this process."""
    with Stage(binary, embedded=shape == "one") as stage:
        for name in DOCUMENTS:
            if name in only:
                document = importlib.import_module(name)
                document.facts(lambda what, test, *more, name=name: facts.check(
                    f"{name}, {shape}: {what}", test, *more), stage)
        if "clients" in only:
            for name, argv in CLIENTS:
                client(facts, stage, name, argv)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="target/debug/carillon")
    parser.add_argument("--only", default=",".join([*DOCUMENTS, "clients"]))
    parser.add_argument("--on", default="three,one")
    parser.add_argument("--jobs", type=int, default=side_by_side.default_jobs(),
                        help="how many documents at once; 1: in this process")
    args = parser.parse_args()
    binary, only, shapes, facts = os.path.abspath(args.binary), args.only.split(","), args.on.split(","), Facts()
    if args.jobs > 1 and len(only) * len(shapes) > 1:
        side_by_side.finish(*side_by_side.run(
            {f"{name} on {shape}": [sys.executable, __file__, "--binary", binary, "--jobs", "1", "--only", name, "--on", shape]
             for shape in shapes for name in only}, args.jobs))
    for shape in shapes:
        play(binary, shape, only, facts)
    facts.finish()


main()
