#!/usr/bin/env python3
"""Runs every stranger against real processes: one line a fact, then `N passed, N failed`."""

import argparse
import os
import subprocess
import sys

from harness import HERE, Cluster, Facts

import application
import binary
import churn
import compression
import connections
import creation
import delivery
import hostile
import interleavings
import limits
import malformed
import notifications
import openapi
import operator_view
import outage
import proxies
import recovery
import reload
import side_by_side
import slow
import subscriptions
import tls
import tokens


def browser(facts, cluster):
    """npm `ws` and an EventSource in Chromium; the script prints the same kind of lines."""
    env = {**os.environ, "TOKEN": cluster.token("web"), "API_KEY": cluster.keys.api_key,
           "NODES": ",".join(node.http for node in cluster.nodes)}
    script = os.path.join(HERE, "browser.mjs")
    done = subprocess.run(["node", script], env=env, text=True, capture_output=True, timeout=400)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok   ", "FAIL "))]
    for line in lines:
        print(line, flush=True)
        facts.passed += line.startswith("ok")
        facts.failed += line.startswith("FAIL")
    if done.returncode != 0 and not any(line.startswith("FAIL") for line in lines) or not lines:
        facts.failed += 1
        print(f"FAIL browser.mjs ended with {done.returncode}: {done.stderr[-2000:]}", flush=True)


# Batteries that share three nodes, and those that start what they need. The longest ones first: the end is then short.
SHARED = {
    "malformed": malformed.facts,
    "limits": limits.facts,
    "browser": lambda check, cluster: browser(check.__self__, cluster),
    "notifications": notifications.facts,
    "subscriptions": subscriptions.facts,
    "connections": connections.facts,
    "delivery": delivery.facts,
    "binary": binary.facts,
    "slow": slow.facts,
    "recovery": recovery.facts,
}
OWN = {
    "creation": creation.facts,
    "application": application.facts,
    "churn": churn.facts,
    "openapi": openapi.facts,
    "interleavings": interleavings.facts,
    "outage": outage.facts,
    "operator": operator_view.facts,
    "reload": reload.facts,
    "tls": tls.facts,
    "tokens": tokens.facts,
    "hostile": hostile.facts,
    "proxies": proxies.facts,
    "compression": compression.facts,
}
# What chance decides can be replayed.
SEEDED = ("interleavings", "churn")
# Side by side, the small ones share nodes.
TOGETHER = [["notifications", "subscriptions", "connections"], ["delivery", "binary", "slow", "recovery"]]


def sequence(only, binary, seed, facts):
    """One after the other, in this process."""
    if any(name in only for name in SHARED):
        with Cluster(binary) as cluster:
            for name in SHARED:
                if name in only:
                    SHARED[name](facts.check, cluster)
    for name in OWN:
        if name in only:
            OWN[name](facts.check, binary, *([seed] if name in SEEDED else []))


def many_at_once(only, binary, jobs):
    groups = [[name] for name in [*OWN, *SHARED] if not any(name in group for group in TOGETHER)] + TOGETHER
    asked = [[name for name in group if name in only] for group in groups]
    batteries = {", ".join(names): [sys.executable, __file__, "--binary", binary, "--jobs", "1", "--only", ",".join(names)]
                 for names in asked if names}
    return side_by_side.run(batteries, jobs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="target/debug/carillon")
    parser.add_argument("--only", default=",".join([*SHARED, *OWN]))
    parser.add_argument("--seed", type=int, help="replays what chance did; one after the other")
    parser.add_argument("--jobs", type=int, default=side_by_side.default_jobs(), help="how many batteries at once; 1: in this process")
    args = parser.parse_args()
    binary, only, facts = os.path.abspath(args.binary), args.only.split(","), Facts()
    if args.jobs > 1 and len(only) > 1 and args.seed is None:
        side_by_side.finish(*many_at_once(only, binary, args.jobs))
    sequence(only, binary, args.seed, facts)
    facts.finish()


main()
