"""The OpenAPI document against the running node: schemathesis sends what the document allows and what it forbids,
with and without a credential, and compares every answer with it.

Data is generated without randomness and bounded, so that a run says the same twice and ends within a minute or so. The event stream is left out: it has no end (the other strangers read it).
"""

import os
import re
import subprocess
import sys
import tempfile

from harness import Cluster, call

EXAMPLES = 12
SECONDS_MAX = 240  # on a starved machine; a quiet one needs a quarter of it

# A cursor is opaque: only what a list answered is one.
CONFIG = """
# Values that stood in answers are sent on as they are, and `%` in a channel's name is not escaped then: what may
# follow what, the document's own links say.
[phases.stateful.inference]
algorithms = []

[phases.coverage.extra-data-sources]
responses = false

[phases.fuzzing.extra-data-sources]
responses = false

[[operations]]
include-name = "GET /connections"
parameters = { "query.cursor" = "" }

[[operations]]
include-name = "GET /channels"
parameters = { "query.cursor" = "" }

# All checks but this one: `until` must lie within a year, and no schema can say so.
[[operations]]
include-name = "POST /tokens/revoke"
[operations.checks]
positive_data_acceptance.enabled = false
"""


def facts(check, binary):
    def document_is_served():
        answer = call(node, "GET", "/openapi.json")
        assert answer.status == 200 and answer.json["openapi"].startswith("3.1"), answer
        for path, methods in answer.json["paths"].items():
            for method, operation in methods.items():
                if method in ("get", "post", "put", "patch", "delete"):
                    assert operation.get("summary"), f"{method} {path} has no summary"
        page = call(node, "GET", "/docs")
        assert page.status == 200 and page.headers["Content-Type"].startswith("text/html"), page
        elsewhere = re.findall(rb"""(?:src|href)=["']?(?:https?:)?//""", page.body)
        assert not elsewhere, elsewhere

    def no_findings():
        with tempfile.TemporaryDirectory(prefix="carillon-openapi-") as directory:
            config = os.path.join(directory, "schemathesis.toml")
            with open(config, "w") as file:
                file.write(CONFIG)
            argv = [os.path.join(os.path.dirname(sys.executable), "st"), "--config-file", config, "run",
                    f"{node.http}/api/realtime/openapi.json", "--url", f"{node.http}/api/realtime",
                    "--header", f"X-API-Key: {cluster.keys.api_key}", "--continue-on-failure",
                    "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(EXAMPLES),
                    "--generation-deterministic", "--exclude-operation-id", "get_events",
                    # Polls live on another base, and are a user's: the documents' tests ask them.
                    "--exclude-path-regex", "^/poll",
                    "--request-timeout", "10", "--suppress-health-check", "all"]
            done = subprocess.run(argv, text=True, capture_output=True, timeout=SECONDS_MAX, cwd=directory,
                                  env={**os.environ, "NO_COLOR": "1"})
            assert done.returncode == 0, f"schemathesis ended with {done.returncode}:\n{done.stdout[-40_000:]}{done.stderr[-2_000:]}"
            cases = re.search(r"(\d+) generated", done.stdout)
            print(f"     {cases.group(0) if cases else done.stdout[-300:]}", flush=True)
        assert node.alive(), "the node ended"

    with Cluster(binary, nodes=1) as cluster:
        node = cluster.nodes[0]
        check("the OpenAPI document and its page are served and need nothing from elsewhere", document_is_served)
        check("schemathesis finds nothing", no_findings)
