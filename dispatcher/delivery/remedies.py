"""Explains an attempt to a tenant's administrator: what happens to the event, and what to change. Pure.

There is one table for failures and one for HTTP statuses. Each remedy names the concrete cause: the audience of the
token, the certificate's fault, the header that requests a pause.
"""

from typing import Final
from urllib.parse import urlsplit

from dispatcher.config.settings import RetrySettings
from dispatcher.config.units import format_duration
from dispatcher.config.webhook_auth import JwtAuth, SignedToken
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.outcomes import FailureReason
from dispatcher.contract.reason_texts import FAILED
from dispatcher.delivery.verdicts import GONE, MAX_REFUSALS, Judgement, Verdict


def verdict_in_words(judgement: Judgement, retry: RetrySettings) -> str:
    """Describes what the dispatcher does with an event whose attempt was judged like this."""
    first, age = format_duration(retry.tiers[0]), format_duration(retry.max_age)
    match judgement.verdict:
        case Verdict.DELIVERED if judgement.suspends:
            return "Delivered. Your server asked for no more: further events wait until the webhook is edited."
        case Verdict.DELIVERED:
            return "Delivered: your server took the event."
        case Verdict.RETRY_SOON:
            tries = f"up to {retry.soon_attempts} times within {format_duration(retry.soon_within)}, then "
            return f"Not delivered. A real event is tried again {tries if retry.soon_attempts else ''}" + (
                f"after {first} and at growing intervals, for {age} in all."
            )
        case Verdict.RETRY_LATER if judgement.payload_refused:
            return f"Not delivered. A real event is tried {MAX_REFUSALS} times within minutes; then it is dead."
        case Verdict.RETRY_LATER:
            return f"Not delivered. A real event is tried again after {first} and at growing intervals, for {age}."
        case Verdict.DISABLE_ENDPOINT:
            return f"Not delivered. Sending stops until the webhook is edited; events wait for up to {age}."
        case Verdict.DEAD:
            return "Not delivered. A real event goes to the dead events at once: another try would end the same way."


def remedy_for(reason: str, status: int | None, detail: str, config: WebhookConfig | None) -> str:
    """Returns what to change; empty if nothing is wrong.

    Args:
        reason: as in the metrics and the history: a `FailureReason`, or `http_4xx`.
        detail: what exactly failed, as in `Attempt`.
        config: the webhook; its secrets are not used and may be empty. None if it was changed after the attempt: then
            nothing of it is named, because another address or token may have been tried.
    """
    if reason in _OF_FAILURE:
        remedy = _of_failure(FailureReason(reason), detail, config)
    else:
        remedy = "" if status is None or 200 <= status < 300 else _of_answer(status, config)
    return f"{remedy} {_CHANGED_SINCE}" if remedy and config is None else remedy


_CHANGED_SINCE: Final = "The webhook was changed since then: a test event shows whether it works now."


_OF_FAILURE: Final[dict[FailureReason, str]] = {
    FailureReason.DNS: "The host name {host} can't be resolved ({detail}): check its spelling, and its DNS record.",
    FailureReason.CONNECT_REFUSED: "Nothing listens on port {port} of {host}: start the server, or correct the port.",
    FailureReason.CONNECT_TIMEOUT: "{host} doesn't accept connections ({detail}): allow our addresses in its firewall.",
    FailureReason.CONNECT: "{host} can't be reached ({detail}): check its address, and the network in between.",
    FailureReason.TLS: "No TLS connection to {host} ({detail}): it needs TLS 1.2 or newer and a valid certificate.",
    FailureReason.TIMEOUT: "The server took too long ({detail}): answer 2xx as soon as the event is stored, and "
    "process it afterwards; or allow the webhook a longer timeout, up to 30 s.",
    FailureReason.RESET: "The connection broke off ({detail}): look for the webhook-id in the server's log.",
    FailureReason.PROTOCOL: "The answer isn't valid HTTP/1.1 ({detail}): check that an HTTPS server listens on "
    "port {port}.",
    FailureReason.EGRESS_DENIED: "We don't send there ({detail}): use a host with public addresses, or have the "
    "operator allow it. Events wait meanwhile.",
    FailureReason.URL_DENIED: "We don't send there ({detail}): use a host with a public address.",
    FailureReason.LOCAL: "Our own side failed ({detail}): nothing is wrong on your side; report it to the operator.",
    FailureReason.PROXY: "Our own way out failed ({detail}): nothing is wrong on your side; report it to the operator.",
    FailureReason.TOKEN: "No token could be obtained: {detail}.",
}

_OF_CERTIFICATE: Final = (
    (("expired",), "The certificate of {host} has expired: renew it."),
    (("not yet valid",), "The certificate of {host} is not valid yet: check its dates, and the server's clock."),
    (
        ("mismatch", "not valid for"),
        "The certificate is not for {host}: have it name exactly this host as a subject alternative name.",
    ),
    (
        ("self-signed", "self signed", "local issuer"),
        "The certificate of {host} is signed by an authority that we don't know ({detail}): have the server send its "
        "whole chain, use a public authority, or give your own CA in the webhook's TLS settings.",
    ),
    (
        ("certificate required", "handshake failure", "bad certificate"),
        "{host} broke off the TLS handshake ({detail}): if it wants a client certificate, give the webhook one.",
    ),
)
"""Words of a TLS failure's detail, and the remedy; the first match is used."""

_OF_STATUS: Final[dict[int, str]] = {
    404: "The server doesn't have this path (404): correct the URL.",
    405: "The path doesn't accept POST (405): correct the URL, or configure the server to accept POST.",
    408: "The server gave up waiting for the request (408): check its limits, and those of a proxy in front of it.",
    GONE: "The server said that the endpoint is gone for good (410): correct the URL, then reactivate the webhook.",
    413: "The body is too large for the server (413): configure it to accept at least 256 kB.",
    415: "The server refuses application/json (415): configure it to accept application/json.",
    422: "The server found the payload wrong (422): compare the payload's version with what it expects.",
    429: "The server gets too many requests (429): set a rate limit for the webhook, or raise the server's limit.",
    500: "The server failed (500): look for the request, by its webhook-id, in its log.",
    501: "The server doesn't implement this request (501): correct the URL.",
    502: "A proxy in front of the server got no valid answer from it (502): check both.",
    503: "The server is overloaded or in maintenance (503). Configure it to send Retry-After, or set a rate limit.",
    504: "A proxy in front of the server got no answer in time (504): make the server answer sooner.",
    505: "The server refuses HTTP/1.1 (505): configure it to accept HTTP/1.1.",
}


def _of_failure(reason: FailureReason, detail: str, config: WebhookConfig | None) -> str:
    text, lower = _OF_FAILURE[reason], detail.lower()
    if reason is FailureReason.TLS:
        text = next((text for signs, text in _OF_CERTIFICATE if any(sign in lower for sign in signs)), text)
    if config is None:
        names_address = "{host}" in text or "{port}" in text
        return f"{FAILED[reason].label} ({detail})." if names_address else text.format(detail=detail)
    parts = urlsplit(config.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return text.format(detail=detail, host=parts.hostname, port=port)


def _of_answer(status: int, config: WebhookConfig | None) -> str:
    if status in (401, 403):
        return _refused_access(status, config)
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    if 300 <= status < 400:
        return f"The server redirected us ({status}), which we never follow: set the URL to where it points."
    if status < 500:
        return f"The server refused the request ({status}). It has to answer 2xx to events that it accepts."
    return f"The server failed ({status}): look for the request, by its webhook-id, in its log."


def _refused_access(status: int, config: WebhookConfig | None) -> str:
    what = f"The server refused us access ({status})"
    if config is None:
        return f"{what}."
    auth = config.auth
    if not isinstance(auth, JwtAuth):
        signed = " If it verifies webhook-signature, check its signing secret." if config.signing is not None else ""
        cure = "choose JWT Authentication, or accept requests without authentication"
        return f"{what}, and no authentication is set up: {cure}.{signed}"
    if auth.sign is not None:
        text = f"Its token in {auth.header} was {_signed(auth.sign, config.origin)}"
        return f"{what}. {text}. Configure the server to expect exactly these values and give it the key."
    fetch = auth.fetch
    if fetch is None:
        return f"{what}."
    scope = f", for scope {fetch.scope}" if fetch.scope else ""
    audience = f" and audience {fetch.audience}" if fetch.audience else ""
    host = urlsplit(fetch.token_url).hostname
    return f"{what}, with a fresh token of {host}{scope}{audience}. Check that such a token gives access to the URL."


def _signed(token: SignedToken, origin: str) -> str:
    audience, kid = token.audience or origin, f" and key id {token.kid}" if token.kid else ""
    return f"signed with {token.algorithm.value}{kid}; its issuer is {token.issuer}, its audience {audience}"
