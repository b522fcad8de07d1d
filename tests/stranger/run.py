#!/usr/bin/env python3
"""Runs every stranger against real processes: one line a fact, then `N passed, N failed`."""

import argparse
import os
import subprocess
import sys

from harness import HERE, Cluster, Facts

import connections
import creation
import delivery
import limits
import malformed
import notifications
import openapi
import outage
import proxies
import recovery
import reload
import slow
import tls
import subscriptions

sys.path.insert(0, os.path.join(HERE, "..", "documents"))
import uno  # noqa: E402

BATTERIES = ("notifications", "subscriptions", "connections", "delivery", "malformed", "browser", "limits",
             "slow", "recovery", "uno", "openapi", "creation", "outage")


def browser(facts, cluster):
    """npm `ws` and an EventSource in Chromium; the script prints the same kind of lines."""
    env = {**os.environ, "TOKEN": cluster.token("web"), "API_KEY": cluster.keys.api_key,
           "NODES": ",".join(node.http for node in cluster.nodes)}
    script = os.path.join(HERE, "browser.mjs")
    done = subprocess.run(["node", script], env=env, text=True, capture_output=True, timeout=180)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok   ", "FAIL "))]
    for line in lines:
        print(line, flush=True)
        facts.passed += line.startswith("ok")
        facts.failed += line.startswith("FAIL")
    if done.returncode != 0 and not any(line.startswith("FAIL") for line in lines) or not lines:
        facts.failed += 1
        print(f"FAIL browser.mjs ended with {done.returncode}: {done.stderr[-2000:]}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="target/debug/carillon")
    parser.add_argument("--only", default="delivery,malformed,browser,limits,slow,recovery,outage,reload,tls,proxies")
    parser.add_argument("--only", default=",".join(BATTERIES))
    args = parser.parse_args()
    only, facts = args.only.split(","), Facts()
    with Cluster(os.path.abspath(args.binary)) as cluster:
        for name in ("notifications", "subscriptions", "connections"):
            if name in only:
                globals()[name].facts(facts.check, cluster)
        if "delivery" in only:
            delivery.facts(facts.check, cluster)
        if "malformed" in only:
            malformed.facts(facts.check, cluster)
        if "browser" in only:
            browser(facts, cluster)
        if "limits" in only:
            limits.facts(facts.check, cluster)
        if "slow" in only:
            slow.facts(facts.check, cluster)
        if "recovery" in only:
            recovery.facts(facts.check, cluster)
    if "uno" in only:
        # A heartbeat that a test can wait for.
        with Cluster(os.path.abspath(args.binary), extra_toml='[heartbeat]\ninterval = "2s"\n') as cluster:
            uno.facts(facts.check, cluster)
    if "openapi" in only:
        openapi.facts(facts.check, os.path.abspath(args.binary))
    if "creation" in only:
        creation.facts(facts.check, os.path.abspath(args.binary))
    if "outage" in only:
        outage.facts(facts.check, os.path.abspath(args.binary))
    if "reload" in only:
        reload.facts(facts.check, os.path.abspath(args.binary))
    if "tls" in only:
        tls.facts(facts.check, os.path.abspath(args.binary))
    if "proxies" in only:
        proxies.facts(facts.check, os.path.abspath(args.binary))
    print(f"{facts.passed} passed, {facts.failed} failed", flush=True)
    sys.exit(1 if facts.failed else 0)


main()
