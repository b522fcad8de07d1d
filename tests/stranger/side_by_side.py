"""Batteries side by side: each is a process of its own with processes of its own, and most of them wait most of the time.
One that failed is played once more when all others are done, alone.

Knows nothing of what a battery asks: its lines are its own, its last line is `N passed, N failed`.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

# The slowest takes a minute on a quiet machine.
PATIENCE_SECONDS = 600
# More failed facts than these are no accident, and are not played again.
AGAIN_MAX = 5
# What no second time makes good.
FAULT = "FAIL a node panicked"
VERDICT = re.compile(r"^(\d+) passed, (\d+) failed$")


def default_jobs():
    """One more than there are processors: somebody always waits. With more, a second is not always enough for Redis to answer."""
    return (os.cpu_count() or 1) + 1


def run(batteries, jobs):
    """Runs `{name: argv}`, as many at once as `jobs`, in the order given. Each battery's lines are printed in one piece when
    it ends, under its name, its seconds and the processor's. What failed and then passed alone is named `unsteady: ...`.
    Returns how many facts passed and failed."""
    printing = threading.Lock()

    def one(name):
        began = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            child = subprocess.Popen(batteries[name], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
            status, busy = _end_of(child)
            output.seek(0)
            lines = output.read().splitlines()
        verdict = VERDICT.match(lines[-1]) if lines else None
        passed, failed = map(int, verdict.groups()) if verdict else (0, 0)
        if status != 0 and not failed:
            failed = 1
            lines.append(f"FAIL {name} ended with {status}")
        with printing:
            print(f"--- {name}: {passed} passed, {failed} failed in {time.monotonic() - began:.0f} s "
                  f"({busy:.0f} s of processor)", *(lines[:-1] if verdict else lines), sep="\n", flush=True)
        return passed, failed, [line for line in lines if line.startswith("FAIL ")]

    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as workers:
        ended = dict(zip(batteries, workers.map(one, batteries)))
    unsteady = []
    if sum(failed for _, failed, _ in ended.values()) <= AGAIN_MAX:
        for name, (_, failed, wrong) in ended.items():
            if failed and not any(line.startswith(FAULT) for line in wrong):
                print(f"--- once more, alone: {name}", flush=True)
                ended[name] = one(name)
                unsteady += [] if ended[name][1] else [f"unsteady: {name}: {line[:400]}" for line in wrong]
    print(f"--- all of them in {time.monotonic() - began:.0f} s, {jobs} at once", *unsteady, sep="\n", flush=True)
    return sum(passed for passed, _, _ in ended.values()), sum(failed for _, failed, _ in ended.values())


def _end_of(child):
    """Waits for a child; its exit status and the seconds that it and all it waited for had of a processor."""
    end = time.monotonic() + PATIENCE_SECONDS
    asked = False
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, used.ru_utime + used.ru_stime
        if time.monotonic() > end and not asked:
            # As Ctrl-C: it ends what it has started.
            os.kill(child.pid, signal.SIGINT)
            asked = True
        time.sleep(0.05)


def finish(passed, failed):
    """The last line, and the exit status that goes with it."""
    print(f"{passed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)
