"""A webhook receiver: verifies signature and JWT, drops repeats, answers quickly.

    pip install standardwebhooks 'pyjwt[crypto]'
    CERT=cert.pem KEY=key.pem SECRET=whsec_… JWKS=jwks.json AUDIENCE=https://hooks.luma.example python receiver.py

SECRET or JWKS may be left out if the webhook has no signing secret or no JWT authentication.
"""

import json
import os
import ssl
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

SECRET = os.environ.get("SECRET")
JWKS = jwt.PyJWKSet.from_json(Path(os.environ["JWKS"]).read_text()) if "JWKS" in os.environ else None
AUDIENCE, ISSUER = os.environ.get("AUDIENCE"), os.environ.get("ISSUER", "feedback-dispatcher")
MAX_BODY = 1024 * 1024
MAX_SEEN = 100_000

seen: OrderedDict[str, None] = OrderedDict()  # in production: a table with a unique key, shared by all processes


def problem_of(headers, body: bytes) -> str | None:
    """Returns why the request can't be trusted, or None."""
    if SECRET:
        try:
            Webhook(SECRET).verify(body, {name.lower(): value for name, value in headers.items()})
        except WebhookVerificationError as error:  # also if the timestamp is more than 5 minutes off
            return f"signature: {error}"
    if JWKS:
        _scheme, _, token = headers.get("authorization", "").partition(" ")
        try:
            key = JWKS[jwt.get_unverified_header(token).get("kid", "")]
            jwt.decode(token, key, algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER, leeway=10)
        except (jwt.InvalidTokenError, KeyError) as error:
            return f"token: {error}"
    return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        if length > MAX_BODY:
            self.answer(413)
            return
        body = self.rfile.read(length)
        problem = problem_of(self.headers, body)
        if problem:
            print(f"refused: {problem}", flush=True)
            self.answer(401)
            return
        event_id = self.headers["webhook-id"]
        if event_id in seen:
            print(f"repeat {event_id}", flush=True)
        else:
            event = json.loads(body)
            status = event["messageDeliveryFeedback"]["feedbackStatus"]["value"]
            print(f"event {event_id} {event['channel']} {status}", flush=True)  # in production: put it into a queue
            seen[event_id] = None
            if len(seen) > MAX_SEEN:
                seen.popitem(last=False)
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Logs nothing: a request's URL may hold a secret."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8443"))), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(os.environ["CERT"], os.environ["KEY"])
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("ready", flush=True)
    server.serve_forever()
