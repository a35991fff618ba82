"""Checks of an endpoint: the payload's shape, header parameters, a token, a signature.

Written from the contracts and from the standards, not with the dispatcher's own code: two readings of a contract
find what one alone would repeat. Each check returns what is wrong, or None.
"""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from dispatcher.demo.ledger import Arrival

_CLOCK_S: Final = 300
_KEYS: Final = (
    "requestId", "imsOrg", "sandbox", "channel", "eventType", "messageExecution", "messageDeliveryFeedback",
    "identityMap",
)  # fmt: skip
_FEEDBACK_KEYS: Final = ("feedbackStatus", "offers", "messageExclusion", "messageFailure", "retryCount")


@dataclass(frozen=True, slots=True)
class ReceiverRefusal:
    """A broken rule and the status that it is answered with."""

    reason: str
    status: int = 400


class ArrivalCheck(Protocol):
    """One rule."""

    def refusal(self, arrival: Arrival) -> ReceiverRefusal | None: ...


@dataclass(frozen=True, slots=True)
class DeliveryCheck:
    """Checks what every request has: the headers of the contract, and the tenant's feedback in payload version 1."""

    org: str
    statuses: frozenset[str]
    channels: frozenset[str]

    def refusal(self, arrival: Arrival) -> ReceiverRefusal | None:
        reason = self._headers(arrival) or self._payload(arrival.body)
        return None if reason is None else ReceiverRefusal(reason)

    def _headers(self, arrival: Arrival) -> str | None:
        headers = arrival.headers
        if headers.get("content-type") != "application/json":
            return f"content-type is {headers.get('content-type')}"
        if not re.fullmatch(r"feedback-dispatcher/\S+", headers.get("user-agent", "")):
            return f"user-agent is {headers.get('user-agent')}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", arrival.webhook_id):
            return "webhook-id is missing, or not an id without dots"
        if abs(_seconds(headers.get("webhook-timestamp", "")) - time.time()) > _CLOCK_S:
            return f"webhook-timestamp is {headers.get('webhook-timestamp')}"
        return None if arrival.attempt >= 1 else f"webhook-attempt is {headers.get('webhook-attempt')}"

    def _payload(self, body: bytes) -> str | None:
        try:
            payload = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            return f"the body isn't JSON: {error}"
        if not isinstance(payload, dict) or tuple(payload) != _KEYS:
            return "the payload's keys are not those of version 1, in this order"
        feedback = payload["messageDeliveryFeedback"]
        if tuple(feedback) != _FEEDBACK_KEYS:
            return "messageDeliveryFeedback has other keys than version 1"
        if payload["imsOrg"] != self.org:
            return "this is another organisation's event"
        if payload["channel"] not in self.channels:
            return f"channel {payload['channel']} was not asked for"
        status = feedback["feedbackStatus"]["value"]
        return None if status in self.statuses else f"status {status} was not asked for"


@dataclass(frozen=True, slots=True)
class HeaderCheck:
    """Checks that header parameters are exactly as configured."""

    wanted: Mapping[str, str]

    def refusal(self, arrival: Arrival) -> ReceiverRefusal | None:
        for name, value in self.wanted.items():
            if arrival.headers.get(name) != value:
                return ReceiverRefusal(f"header parameter {name} is missing or another")
        return None


@dataclass(frozen=True, slots=True)
class JwtCheck:
    """Checks that a bearer token verifies with the public key; 401 if it doesn't."""

    key: PublicKeyTypes | bytes
    algorithm: str
    issuer: str
    audience: str
    kid: str | None = None
    claims: Mapping[str, object] = field(default_factory=dict)

    def refusal(self, arrival: Arrival) -> ReceiverRefusal | None:
        scheme, _, token = arrival.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            return ReceiverRefusal("no bearer token", 401)
        try:
            found = jwt.decode_complete(
                token,
                self.key,  # type: ignore[arg-type]  # PyJWT names the keys of each algorithm
                algorithms=[self.algorithm],
                issuer=self.issuer,
                audience=self.audience,
                options={"require": ["exp", "iat", "iss", "aud"]},
            )
        except jwt.InvalidTokenError as error:
            return ReceiverRefusal(f"the token does not verify: {error}", 401)
        if self.kid is not None and found["header"].get("kid") != self.kid:
            return ReceiverRefusal("the token names another key", 401)
        wrong = [name for name, value in self.claims.items() if found["payload"].get(name) != value]
        return ReceiverRefusal(f"claims missing or other: {', '.join(wrong)}", 401) if wrong else None


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """Checks a Standard Webhooks signature, `v1` by one of the secrets (`whsec_…`); 401 if none fits."""

    secrets: tuple[str, ...]

    def refusal(self, arrival: Arrival) -> ReceiverRefusal | None:
        timestamp = arrival.headers.get("webhook-timestamp", "")
        message = f"{arrival.webhook_id}.{timestamp}.".encode() + arrival.body
        given = arrival.headers.get("webhook-signature", "").split(" ")
        for secret in self.secrets:
            key = base64.b64decode(secret.removeprefix("whsec_"))
            signature = base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()
            if any(hmac.compare_digest(f"v1,{signature}", one) for one in given):
                return None
        return ReceiverRefusal("no signature fits", 401)


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0
