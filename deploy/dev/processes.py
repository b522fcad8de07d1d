"""The processes of a development cluster: redis-server, Carillon nodes, HAProxy.

Owns starting them on loopback with generated secrets, waiting until they answer, and ending every
one of them. Knows nothing of tests or of what is said to a node. Standard library only.
"""

import base64
import fcntl
import hashlib
import hmac
import json
import os
import random
import secrets
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
SCOPES = ["realtime:publish", "realtime:read", "realtime:manage", "realtime:admin"]

_given_ports = set()
_port_locks = os.open(os.path.join(tempfile.gettempdir(), f"carillon-ports-{os.getuid()}.lock"), os.O_CREAT | os.O_RDWR, 0o600)


def free_port():
    """A loopback TCP port that nobody listens on now, and that no other caller is given: neither in this process nor, while
    this process lives, in another.

    Not one that the kernel hands out: whoever connects somewhere may be given that before the process here binds it. And
    none of those that the Rust tests give to their redis-servers (10,000 to 12,000, and 10,000 above).
    """
    while True:
        port = random.SystemRandom().randrange(22_000, 32_000)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            try:
                # A byte for each port, locked until this process ends: between the look here and the bind there lies a start.
                fcntl.lockf(_port_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given_ports.add(port)
            return port


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign_token(secret, claims, header=None):
    """An HS256 JWT; `header` replaces the usual one (for hostile tests)."""
    head = base64url(json.dumps(header or {"alg": "HS256", "typ": "JWT"}).encode())
    body = base64url(json.dumps(claims).encode())
    mac = hmac.new(secret.encode(), f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64url(mac)}"


class Secrets:
    """What a development installation signs with: made anew, never stored in the repository."""

    def __init__(self):
        self.jwt = secrets.token_urlsafe(48)
        self.api_key = "dev_" + secrets.token_urlsafe(32)

    def token(self, user, ttl_seconds=3600, **claims):
        now = int(time.time())
        return sign_token(
            self.jwt, {"sub": user, "user_id": user, "iat": now, "exp": now + ttl_seconds, **claims}
        )


class Process:
    """One child with its log file. `argv` is kept, so that it can be started again."""

    def __init__(self, name, argv, directory, env=None):
        self.name, self.argv, self.env = name, argv, env
        self.log_path = os.path.join(directory, f"{name}.log")
        self.child = None

    def start(self):
        with open(self.log_path, "ab") as log:
            self.child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(self.env or {})},
                start_new_session=True,  # Ctrl-C reaches only the script, which ends them in order.
            )
        return self

    @property
    def pid(self):
        return self.child.pid

    def alive(self):
        return self.child is not None and self.child.poll() is None

    def send(self, sig):
        if self.alive():
            os.kill(self.child.pid, sig)

    def kill(self):
        """kill -9, and wait until it is gone."""
        if self.child is not None:
            self.send(signal.SIGKILL)
            self.child.wait()

    def stop(self, grace_seconds=5):
        """SIGTERM, then SIGKILL after the grace."""
        if not self.alive():
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            self.child.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def log_tail(self, lines=20):
        with open(self.log_path, errors="replace") as log:
            return "".join(log.readlines()[-lines:])


class Redis(Process):
    """A redis-server without persistence on a port of its own."""

    def __init__(self, directory, port=None):
        self.port = port or free_port()
        binary = shutil.which("redis-server")
        if binary is None:
            raise SystemExit("redis-server is missing: apt-get install redis-server")
        argv = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                "--appendonly", "no", "--dir", directory]
        super().__init__("redis", argv, directory)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def ready(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as conn:
                conn.sendall(b"PING\r\n")
                return conn.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class Node(Process):
    """One `carillon serve` with a configuration file of its own."""

    def __init__(self, binary, directory, name, keys, redis_url=None, port=None,
                 operator_port=None, extra_toml=""):
        self.port = port or free_port()
        self.operator_port = operator_port or free_port()
        self.config_path = os.path.join(directory, f"{name}.toml")
        redis = (f'mode = "standalone"\nurl = "{redis_url}"' if redis_url else 'mode = "memory"')
        text = f"""[server]
listen = "127.0.0.1:{self.port}"
[operator]
listen = "127.0.0.1:{self.operator_port}"
[node]
id = "{name}"
[redis]
{redis}
[auth.jwt]
secret = "{keys.jwt}"
[auth.api_keys.dev]
key = "{keys.api_key}"
scopes = {json.dumps(SCOPES)}
{extra_toml}
"""
        with open(os.open(self.config_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)
        super().__init__(name, [binary, "serve", "--config", self.config_path], directory)

    @property
    def http(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self):
        return f"ws://127.0.0.1:{self.port}"

    def health(self, what):
        """HTTP status of /health/{what} on the operators' port; 0 when nobody answers."""
        url = f"http://127.0.0.1:{self.operator_port}/health/{what}"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return 0

    def ready(self):
        return self.health("ready") == 200


class Balancer(Process):
    """HAProxy with a sticky cookie over the nodes."""

    def __init__(self, directory, nodes, port=None, listen="127.0.0.1"):
        self.port = port or free_port()
        binary = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if binary is None:
            raise SystemExit("haproxy is missing: apt-get install haproxy")
        with open(os.path.join(HERE, "..", "haproxy", "haproxy.cfg.template")) as f:
            template = string.Template(f.read())
        servers = "\n".join(
            f"    server {node.name} 127.0.0.1:{node.port} cookie {node.name} "
            f"check port {node.operator_port}"
            for node in nodes
        )
        config = os.path.join(directory, "haproxy.cfg")
        with open(config, "w") as f:
            f.write(template.safe_substitute(
                MAXCONN="9000", RUNDIR=directory, LISTEN=f"{listen}:{self.port}", SERVERS=servers))
        super().__init__("haproxy", [binary, "-db", "-f", config], directory)

    def ready(self):
        try:
            with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.port}/api/realtime/openapi.json", timeout=2) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as refused:
            return refused.code != 503
        except OSError:
            return False


class Prometheus(Process):
    """Scrapes the nodes' operator ports."""

    def __init__(self, directory, nodes, port=None):
        self.port = port or free_port()
        binary = shutil.which("prometheus")
        if binary is None:
            raise SystemExit("prometheus is missing: apt-get install prometheus")
        targets = [{"targets": [f"127.0.0.1:{node.operator_port}"], "labels": {"node": node.name}}
                   for node in nodes]
        config = os.path.join(directory, "prometheus.yml")
        with open(config, "w") as f:  # JSON is YAML.
            json.dump({"global": {"scrape_interval": "5s"},
                       "scrape_configs": [{"job_name": "carillon", "static_configs": targets}]}, f)
        super().__init__("prometheus", [
            binary, f"--config.file={config}", f"--storage.tsdb.path={directory}/prometheus",
            f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"], directory)

    @property
    def http(self):
        return f"http://127.0.0.1:{self.port}"

    def ready(self):
        try:
            with urllib.request.urlopen(f"{self.http}/-/ready", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False


def wait_until(what, condition, seconds=60, process=None):
    """Polls `condition` until it holds; raises with the process's log when it does not."""
    end = time.monotonic() + seconds
    while not condition():
        died = process is not None and not process.alive()
        if died or time.monotonic() > end:
            detail = f"\n--- {process.name}\n{process.log_tail()}" if process else ""
            reason = "it ended" if died else f"not within {seconds} s"
            raise RuntimeError(f"{what}: {reason}{detail}")
        time.sleep(0.05)
