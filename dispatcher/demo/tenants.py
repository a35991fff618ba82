"""The demo's configuration: settings and webhooks as an operator mounts them, written to a directory.

One tenant of each kind, so that each kind of authentication, channel choice and trouble is seen at work.
"""

import base64
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.behaviours import Always, ReceiverAnswer
from dispatcher.demo.checks import ArrivalCheck, DeliveryCheck, HeaderCheck, JwtCheck, SignatureCheck
from dispatcher.demo.ledger import Arrival
from dispatcher.demo.planning import SANDBOX, SMS_ONLY, WANTED
from dispatcher.demo.receiver import DemoEndpoint
from dispatcher.stores.sql.encryption import new_key

TOPIC = "delivery-events"
GROUP = "feedback-dispatcher"
MAX_AGE_S = 8
OUTAGE_S = 6.0
KID = "demo-1"
ISSUER = "feedback-dispatcher"
CONTACT = "ops@adatum.example"
"""Adatum's address, which has to be confirmed by the link in the first e-mail."""
FABRIKAM_HEADERS = {"X-Api-Key": "not-a-real-key", "X-Environment": "demo"}


@dataclass(frozen=True, slots=True)
class DemoTenant:
    """One tenant, with a word on what is special about it."""

    org: str
    title: str
    note: str

    @property
    def key(self) -> TenantKey:
        return TenantKey(self.org, SANDBOX)


TENANTS = (
    DemoTenant("luma", "Luma", "JWT (ES256), e-mail and SMS"),
    DemoTenant("contoso", "Contoso", "no authentication"),
    DemoTenant("fabrikam", "Fabrikam", "header parameters, signed"),
    DemoTenant("northwind", "Northwind", "SMS only"),
    DemoTenant("tailspin", "Tailspin", f"answers 503 for {OUTAGE_S:.0f} s"),
    DemoTenant("adatum", "Adatum", "endpoint is down"),
    DemoTenant("wingtip", "Wingtip", "has no webhook"),
)


def write_configuration(
    directory: Path,
    *,
    brokers: str,
    origin: str,
    closed_port: int,
    ops_port: int,
    console_port: int,
    operator: str,
    smtp_port: int,
) -> Path:
    """Writes `dispatcher.yaml`, and `webhooks.d/` to fill its database from. Returns the settings' path.

    Args:
        origin: the receiver's `https://host:port`, whose CA is in `ca.pem` of the directory.
        closed_port: a port without a listener: Adatum's endpoint.
        operator: URL that receives notifications.
        smtp_port: port of the mail server that takes them.
    """
    _write_secrets(directory)
    hooks = directory / "webhooks.d"
    hooks.mkdir(exist_ok=True)
    for webhook in _webhooks(origin, f"https://127.0.0.1:{closed_port}"):
        _write(hooks / f"{webhook['org']}.yaml", {"apiVersion": "dispatcher/v1", "webhooks": [webhook]})
    _write(directory / "dispatcher.yaml", _settings(brokers, ops_port, console_port, operator, smtp_port))
    return directory / "dispatcher.yaml"


def _write_secrets(directory: Path) -> None:
    secret = directory / "secrets"
    secret.mkdir()
    (secret / "database-url").write_text(f"sqlite+aiosqlite:///{directory / 'webhooks.db'}")
    (secret / "encryption-key").write_text(new_key())
    (secret / "history-url").write_text(f"sqlite+aiosqlite:///{directory / 'history.db'}")
    (secret / "recipient-key").write_text(new_key())
    (secret / "link-key").write_text(new_key())
    write_signing_secret(secret / "operator")


def _settings(brokers: str, ops_port: int, console_port: int, operator: str, smtp_port: int) -> dict[str, object]:
    return {
        "apiVersion": "dispatcher/v1",
        # The embedded broker lets a new member wait half its session: 6 s is the least that can be set.
        "kafka": {"bootstrap_servers": brokers, "topic": TOPIC, "group_id": GROUP, "session_timeout": "6s"},
        "webhooks": {
            "store": "sql",
            "url": {"file": "secrets/database-url"},
            "encryption_keys": [{"file": "secrets/encryption-key"}],
        },
        # A few requests at first, so that Tailspin's 429 comes before its breaker would open for 30 s.
        "delivery": {"lane_start": 4},
        "retry": {"tiers": ["1s", "2s"], "max_age": f"{MAX_AGE_S}s"},
        "egress": {"allow": ["127.0.0.0/8"], "ca_bundle": "ca.pem"},
        "ops": {"host": "127.0.0.1", "port": ops_port},
        "console": {
            "port": console_port,
            "public_url": f"http://127.0.0.1:{console_port}",
            "dispatchers": [f"http://127.0.0.1:{ops_port}"],
        },
        "history": {
            "url": {"file": "secrets/history-url"},
            "recipient_key": {"file": "secrets/recipient-key"},
            "answers": True,
        },
        # Trouble is reported as soon as it is known: a demo is not watched for an hour.
        "notifications": {
            "smtp": {"host": "127.0.0.1", "port": smtp_port, "security": "none", "sender": "dispatcher@demo.example"},
            "operator": ["operator@demo.example"],
            "link_key": {"file": "secrets/link-key"},
            "webhook": {"url": operator, "signing": {"secrets": [{"file": "secrets/operator"}]}},
            "every": "60s",
            "settle": "1s",
        },
        "log": {"format": "json"},
    }


def write_signing_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Writes a new private key for Luma's tokens. Returns the public half, which its receiver knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem)
    path.chmod(0o600)
    return key.public_key()


def write_signing_secret(path: Path) -> str:
    """Writes a new secret for signatures, `whsec_…`. Returns it for the receiver."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    path.write_text(secret, encoding="ascii")
    path.chmod(0o600)
    return secret


@dataclass(slots=True)
class Maintenance:
    """Answers 503 for `for_s` seconds from the first request on, with the remaining time in Retry-After; then 200."""

    for_s: float
    _over_at: float | None = field(default=None, init=False)

    async def answer(self, arrival: Arrival) -> ReceiverAnswer:
        if self._over_at is None:
            self._over_at = arrival.at + self.for_s
        left = self._over_at - arrival.at
        return ReceiverAnswer() if left <= 0 else ReceiverAnswer(503, {"retry-after": str(math.ceil(left))})


def endpoints(luma_key: ec.EllipticCurvePublicKey, fabrikam_secret: str, origin: str) -> dict[str, DemoEndpoint]:
    """Returns the tenants' endpoints by path, the counterpart of the webhooks."""
    further: dict[str, tuple[ArrivalCheck, ...]] = {
        "luma": (JwtCheck(luma_key, "ES256", issuer=ISSUER, audience=origin, kid=KID),),
        "fabrikam": (HeaderCheck(FABRIKAM_HEADERS), SignatureCheck((fabrikam_secret,))),
    }
    made = {}
    for org in ("luma", "contoso", "fabrikam", SMS_ONLY, "tailspin"):
        channels = frozenset({"sms"} if org == SMS_ONLY else {"email", "sms"})
        checks = (DeliveryCheck(org, frozenset(WANTED), channels), *further.get(org, ()))
        made[org] = DemoEndpoint(Maintenance(OUTAGE_S) if org == "tailspin" else Always(), checks)
    return made


def _webhooks(origin: str, nobody: str) -> list[dict[str, object]]:
    sign = {"algorithm": "ES256", "key": {"file": "secrets/luma.pem"}, "kid": KID, "issuer": ISSUER, "ttl": "5m"}
    return [
        _webhook("luma", origin, auth={"type": "jwt", "sign": sign}),
        _webhook("contoso", origin),
        _webhook("fabrikam", origin, headers=FABRIKAM_HEADERS, signing={"secrets": [{"file": "secrets/fabrikam"}]}),
        _webhook("northwind", origin, channels=["sms"]),
        _webhook("tailspin", origin),
        _webhook("adatum", nobody, notify={"emails": [CONTACT]}),
    ]


def _webhook(org: str, origin: str, **fields: object) -> dict[str, object]:
    return {"name": org.title(), "org": org, "sandbox": SANDBOX, "url": f"{origin}/{org}", **fields}


def _write(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
