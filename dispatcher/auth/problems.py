"""Checks a webhook's authentication and signing, for `dispatcher check`, the stores and the console.

The modules that use `cryptography` and `jwt` are imported by the first webhook that signs tokens: they take 9 MB.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dispatcher.auth.signatures import problem_of_signing
from dispatcher.config.secrets import Secret
from dispatcher.config.webhook_auth import FetchedToken, JwtAuth, SignedToken
from dispatcher.config.webhooks import Signing, WebhookConfig

if TYPE_CHECKING:
    from dispatcher.auth.public_keys import PublicJwk
    from dispatcher.auth.signing_keys import KeyDescription


def problems_of(config: WebhookConfig) -> list[tuple[str, str]]:
    """Returns every mistake that can be found without a network: its dotted key in the webhook, and what to change.

    A secret whose reference was not resolved is not checked.
    """
    return [*_in_auth(config), *_in_signing(config)]


def key_description_of(config: WebhookConfig) -> "KeyDescription | None":
    """Describes the key that signs this webhook's tokens, without revealing it. Returns None if we sign none.

    Raises:
        ValueError: the key can't be used.
    """
    token = config.signed_token
    if token is None:
        return None
    from dispatcher.auth.signing_keys import load_key

    return load_key(token).description


def published_keys_of(config: WebhookConfig) -> "list[tuple[PublicJwk, float | None]]":
    """Returns the public keys of a webhook, each with its withdrawal time in Unix seconds, or None if it has none.

    The next key is published at once. The current key is withdrawn 24 hours after the next one starts to sign.
    Unreadable keys are left out.
    """
    from dispatcher.auth.signing_keys import load_key

    token = config.signed_token
    if token is None:
        return []
    ends = None if token.next is None else token.next.previous_ends.timestamp()
    keys: list[tuple[PublicJwk, float | None]] = []
    for one, end in [(token, ends)] if token.next is None else [(token, ends), (token.followed(), None)]:
        try:
            jwk = load_key(one).public_jwk
        except ValueError:
            continue
        if jwk is not None:
            keys.append((jwk, end))
    return keys


def _in_auth(config: WebhookConfig) -> Iterator[tuple[str, str]]:
    auth = config.auth
    if not isinstance(auth, JwtAuth):
        return
    if auth.sign is not None:
        yield from _in_token(auth.sign, "auth.sign")
    if auth.fetch is not None:
        yield from _in_fetch(auth.fetch)


def _in_fetch(fetch: FetchedToken) -> Iterator[tuple[str, str]]:
    assertion = fetch.assertion
    if fetch.grant == "client-credentials" and assertion is not None:
        yield "auth.fetch.assertion", "belongs to grant jwt-bearer: leave it out, or choose that grant"
    if fetch.client_secret is not None and fetch.client_id is None:
        yield "auth.fetch.client_id", "client_secret is sent only with a client_id: give both or neither"
    if fetch.grant == "jwt-bearer" and assertion is not None and assertion.body_hash:
        yield "auth.fetch.assertion.body_hash", "an assertion covers no body: leave it out"
    if assertion is not None:
        yield from _in_token(assertion, "auth.fetch.assertion")


def _in_signing(config: WebhookConfig) -> Iterator[tuple[str, str]]:
    secrets = [] if config.signing is None else config.signing.secrets
    for index, secret in enumerate(secrets):
        problem = problem_of_signing(secret) if _resolved(secret) else None
        if problem:
            yield f"signing.secrets[{index}]", problem
        elif _resolved(secret) and secret in secrets[:index]:
            yield f"signing.secrets[{index}]", "is there already: leave it out"
    if config.signing is not None and config.signing.ends and all(map(_resolved, secrets)):
        yield from _in_ends(config.signing)


def _in_ends(signing: Signing) -> Iterator[tuple[str, str]]:
    fingerprints = [secret.fingerprint() for secret in signing.secrets]
    for fingerprint in signing.ends:
        if fingerprint not in fingerprints:
            known = ", ".join(fingerprints)
            yield f"signing.ends.{fingerprint}", f"no signing secret has this fingerprint (they are {known})"
        elif fingerprint == fingerprints[0]:
            yield f"signing.ends.{fingerprint}", "the first secret can't end: put the new one before it"


def _in_token(token: SignedToken, where: str) -> Iterator[tuple[str, str]]:
    from dispatcher.auth.jwt_signer import problem_of_claims
    from dispatcher.auth.signing_keys import problem_of_key

    problem = problem_of_claims(token.claims)
    if problem:
        yield f"{where}.claims", problem
    problem = problem_of_key(token) if _resolved(token.key) else None
    if problem:
        yield f"{where}.key", problem
    if token.next is not None and _resolved(token.next.key):
        problem = problem_of_key(token.followed())
        if problem:
            yield f"{where}.next.key", problem
        elif token.next.key == token.key:
            yield f"{where}.next.key", "is the key that signs before it: make another one"
        elif token.next.kid is not None and token.next.kid == token.kid:
            yield f"{where}.next.kid", "the key before it has this id, so receivers can't tell them apart: give another"


def _resolved(secret: Secret) -> bool:
    return bool(secret.reveal()) or secret.reference is None
