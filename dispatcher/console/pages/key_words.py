"""Describes a typed secret without revealing it: its kind, length and fingerprint. Pure."""

from dataclasses import dataclass

from dispatcher.auth.signing_keys import load_key
from dispatcher.config.secret_scope import MAX_SECRET_BYTES
from dispatcher.config.secrets import Secret
from dispatcher.config.webhook_auth import SignedToken, SigningAlgorithm
from dispatcher.console.pages.fields import SecretField
from dispatcher.console.pages.form import WebhookForm


@dataclass(frozen=True, slots=True)
class Described:
    """Description of a secret that was typed into the form."""

    text: str
    is_wrong: bool = False


def describe(form: WebhookForm, place: str) -> Described | None:
    """Describes the typed secret of a field; returns None if nothing was typed."""
    typed = form.secrets[place]
    if not typed.typed:
        return None
    size = len(typed.typed.encode(errors="replace"))
    if size > MAX_SECRET_BYTES:
        return Described("Over 64 KiB: is it the right file?", is_wrong=True)
    if place.endswith((".sign.key", ".assertion.key")):
        return _key(typed, form.texts[place.removesuffix("key") + "algorithm"])
    return Described(f"{_kind(typed.typed)}, {size:,} bytes, fingerprint {typed.fingerprint}")


def _key(typed: SecretField, algorithm: str) -> Described:
    if algorithm not in list(SigningAlgorithm):
        return Described("Choose an algorithm first.", is_wrong=True)
    key = Secret(typed.typed.encode(errors="replace").removesuffix(b"\n").removesuffix(b"\r"))
    try:
        found = load_key(SignedToken(algorithm=SigningAlgorithm(algorithm), key=key)).description
    except ValueError as error:
        return Described(f"{error}.", is_wrong=True)
    return Described(f"{found.kind}, {found.bits:,} bits, fingerprint {key.fingerprint()}")


def _kind(text: str) -> str:
    if text.startswith("whsec_"):
        return "HMAC signing secret"
    if text.startswith("whsk_"):
        return "Ed25519 signing key"
    if "-----BEGIN CERTIFICATE-----" in text:
        return f"PEM, certificates: {text.count('-----BEGIN CERTIFICATE-----')}"
    return "PEM" if "-----BEGIN " in text else "Text"
