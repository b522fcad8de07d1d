"""Tokens that PyJWT signs, by every algorithm of the contract (`http-api.md` 1): verified by PEM, by JWK and by a published
set, and by no key of another algorithm."""

import json
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from harness import WsListener, call
from reload import Alone

HMAC = "HS256 HS384 HS512".split()
RSA = "RS256 RS384 RS512 PS256 PS384 PS512".split()
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


class Keys:
    """A key pair a family and curve, and what of it others may see."""

    def __init__(self):
        one = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.private = {**{name: one for name in RSA}, "EdDSA": ed25519.Ed25519PrivateKey.generate(),
                        **{name: ec.generate_private_key(curve) for name, curve in CURVES.items()}}

    def pem(self, name):
        return self.private[name].public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()

    def jwk(self, name, kid):
        kind = ECAlgorithm if name in CURVES else OKPAlgorithm if name == "EdDSA" else RSAAlgorithm
        return {**json.loads(kind.to_jwk(self.private[name].public_key())), "kid": kid, "use": "sig", "alg": name}

    def token(self, name, kid=None, key=None):
        claims = {"sub": "ann", "exp": int(time.time()) + 600}
        return jwt.encode(claims, key or self.private[name], name, headers={"kid": kid} if kid else None)


class Published:
    """A JWK set on loopback."""

    def __init__(self, keys):
        body = json.dumps({"keys": keys}).encode()

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def configured(kid, **settings):
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"kid": kid, **settings}.items()]
    return "\n".join(["[[auth.jwt.keys]]", *lines, ""])


def facts(check, binary):
    keys, secret = Keys(), "s" * 64

    def asked(node, token):
        answer = call(node, "GET", "/notifications/unread-count/ann", None, {"Authorization": f"Bearer {token}"})
        return answer.status, answer.code

    def every_algorithm_is_verified_by_its_own_key_alone():
        names = [*HMAC, *keys.private]
        toml = "".join(configured(name, algorithms=[name], secret=secret) for name in HMAC)
        toml += "".join(configured(name, algorithms=[name], public_key=keys.pem(name)) for name in keys.private)
        with Alone(binary, toml) as alone:
            for signed in names:
                for kid in names:
                    token = keys.token(signed, kid, secret if signed in HMAC else None)
                    expected = (200, None) if signed == kid else (401, "INVALID_TOKEN")
                    assert asked(alone.node, token) == expected, f"{signed} for {kid}: {asked(alone.node, token)}"

    check("tokens of all thirteen algorithms: each verified by its own key alone", every_algorithm_is_verified_by_its_own_key_alone)

    def es512_opens_a_websocket_by_jwk_and_by_a_published_set():
        published = Keys()
        kids = {name: f"set-{name}" for name in published.private}
        inline = configured("inline", public_key=json.dumps(keys.jwk("ES512", "inline")))
        with Published([published.jwk(name, kid) for name, kid in kids.items()]) as jwks:
            alone = Alone(binary, inline)
            with open(alone.node.config_path) as file:
                text = file.read()
            with open(alone.node.config_path, "w") as file:
                file.write(text.replace("[auth.jwt]\n", f"[auth.jwt]\njwks_url = {json.dumps(jwks.url)}\n"))
            with alone:
                for token in (keys.token("ES512", "inline"), published.token("ES512", kids["ES512"])):
                    with WsListener(alone.node, token, ["chat"]) as ann:
                        ann.wait_live(["chat"])
                for name, kid in kids.items():
                    assert asked(alone.node, published.token(name, kid)) == (200, None), name
                    assert asked(alone.node, keys.token(name, kid)) == (401, "INVALID_TOKEN"), name
                # Named as another curve's key, or signed by a key that is not the one of that name.
                for signed, kid in (("ES512", kids["ES384"]), ("ES384", kids["ES512"]), ("RS512", kids["ES512"])):
                    assert asked(alone.node, published.token(signed, kid)) == (401, "INVALID_TOKEN"), signed

    check("ES512 by an inline JWK and by a JWK set", es512_opens_a_websocket_by_jwk_and_by_a_published_set)

    def commands_know_es512():
        def command(name, toml):
            path = os.path.join(alone.directory, "asked.toml")
            with open(path, "w") as file:
                file.write(toml)
            done = subprocess.run([binary, name, "--config", path], capture_output=True, text=True, timeout=60)
            return done.returncode, done.stdout + done.stderr

        with Alone(binary) as alone:
            good = configured("a", public_key=keys.pem("ES512"), algorithms=["ES512"])
            status, shown = command("print-config", good)
            assert status == 0 and '"ES512"' in shown and "BEGIN PUBLIC KEY" in shown, shown
            assert command("check-config", good)[0] == 0
            status, told = command("check-config", configured("a", public_key=keys.pem("ES384"), algorithms=["ES512"]))
            assert status != 0 and "auth.jwt.keys[0].public_key: can verify none of the allowed algorithms" in told, told
            status, told = command("check-config", configured("a", public_key=keys.pem("ES512"), algorithms=["ES521"]))
            assert status != 0 and "ES256/384/512" in told, told

    check("check-config and print-config know ES512", commands_know_es512)
