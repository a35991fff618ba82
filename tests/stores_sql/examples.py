"""Webhooks to test with. Every secret in them is a canary: it must not be seen anywhere."""

from pydantic import JsonValue

from dispatcher.config.webhooks import WebhookConfig
from dispatcher.stores.sql.documents import resolve_draft

CANARY = "canary-never-to-be-seen"


def plain(org: str = "luma@AdobeOrg", sandbox: str = "prod", **others: JsonValue) -> WebhookConfig:
    """A webhook without secrets."""
    return resolve_draft(plain_draft(org, sandbox, **others), {})


def plain_draft(org: str = "luma@AdobeOrg", sandbox: str = "prod", **others: JsonValue) -> dict[str, JsonValue]:
    return {
        "name": "Luma order status",
        "org": org,
        "sandbox": sandbox,
        "url": "https://hooks.luma.example/f",
        **others,
    }


def secretive_draft(org: str = "luma@AdobeOrg", sandbox: str = "prod", **others: JsonValue) -> dict[str, JsonValue]:
    """Everything that can be set, with a secret wherever there can be one."""
    secrets: dict[str, JsonValue] = {
        "auth": {
            "type": "jwt",
            "fetch": {
                "grant": "jwt-bearer",
                "token_url": "https://login.luma.example/token?hint=" + CANARY,
                "client_id": "luma",
                "client_secret": {"value": f"{CANARY}-client"},
                "assertion": {
                    "algorithm": "HS256",
                    "key": {"value": f"{CANARY}-assertion"},
                    "ttl": 90.5,
                    "claims": {"tenant": "luma", "nothing": None, "api_key": CANARY, "deep": {"a": [1, {"b": "on"}]}},
                },
            },
        },
        "signing": {"secrets": [{"value": f"whsec_{CANARY}-new"}, {"value": f"whsec_{CANARY}-old"}]},
        "tls": {"ca": {"value": "ca\r\n\r\n"}, "certificate": {"value": "chain"}, "key": {"value": f"{CANARY}-tls"}},
        "headers": {"X-Environment": "0o17", "Z-Flag": "on", "A-Number": "1e3", "X-Api-Key": f"{CANARY} #: x"},
    }
    return plain_draft(org, sandbox, **(secrets | others))


def with_signing(*values: str) -> WebhookConfig:
    """A webhook with these signing secrets."""
    return plain(signing={"secrets": [{"value": value} for value in values]})


def secretive(org: str = "luma@AdobeOrg", sandbox: str = "prod", **others: JsonValue) -> WebhookConfig:
    """`secretive_draft`, read."""
    return resolve_draft(secretive_draft(org, sandbox, **others), {})
