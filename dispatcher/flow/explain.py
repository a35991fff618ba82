"""Explains the whole decision about one event, for `dispatcher explain` and the console. Pure: it sends nothing.

Tokens, signatures and the values of headers whose names suggest a secret are shown as `<secret>`; they are not even
created. The payload is shown as it would be sent: it holds personal data, which every reader of the topic sees anyway.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_never

from dispatcher.auth.signatures import Signer
from dispatcher.config.secrets import Secret, suggests_a_secret
from dispatcher.config.webhook_auth import JwtAuth
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.event_reader import absent_values_of, spelling_of
from dispatcher.contract.events import DeliveryEvent, OtherEvent, webhook_id
from dispatcher.contract.outcomes import ParkReason, SkipReason
from dispatcher.contract.records import PREFIX, AssignmentEpoch, ProcessingAttempt, Record, RetryState, place_of
from dispatcher.contract.values import HttpHeader, HttpHeaders
from dispatcher.delivery.pending_delivery import PendingDelivery, request_headers
from dispatcher.delivery.permits import Priority
from dispatcher.errors import StoreUnavailable, UnreadableEvent, WebhookUndecided, WebhookUnusable
from dispatcher.flow.decision import campaign_objection, decide, is_of_another_sandbox, read_record
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import USER_AGENT

MASKED = "<secret>"
MIN_HIDDEN = 6
"""Shorter values would also be found in texts that hold no secret."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an explanation, such as `tenant: luma@AdobeOrg/prod`."""

    section: str
    """Heading above the line: read, webhook, rules, request, verdict, lane or history."""
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class RuleAnswer:
    """One eligibility rule, and whether the event passes it."""

    reason: SkipReason
    """The reason that the rule skips events for."""
    passes: bool | None
    """None: not evaluated, because there is no webhook."""
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that was decided about an event, and what would be sent."""

    lines: tuple[Line, ...]
    event: DeliveryEvent | None = None
    """None if the record can't be read, or isn't a delivery event."""
    is_readable: bool = True
    rules: tuple[RuleAnswer, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    """Request headers in order, secrets masked; empty if nothing would be sent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The operator's settings that a decision depends on."""

    max_record_bytes: int
    max_body: int
    timeout_s: float
    events_topic: str | None = None
    """The topic of events: no `feedback-*` header is believed there."""


NoAnswer = WebhookUnusable | WebhookUndecided | StoreUnavailable
"""Why a store has no answer about a tenant. Its events wait."""


def explain(
    record: Record, webhooks: Sequence[Webhook], limits: Limits, now: float, no_answer: NoAnswer | None = None
) -> Explanation:
    """Explains what would happen to a record.

    Args:
        record: from the topic of events, a retry topic or the dead letters.
        webhooks: all that are in use.
        now: Unix seconds, for the header `webhook-timestamp`.
        no_answer: raised by the store for the event's tenant. The webhooks then don't count.
    """
    is_fresh = record.topic == limits.events_topic
    retry_state = RetryState.fresh(record, now) if is_fresh else RetryState.of(record)
    lines = list(_record_lines(record, retry_state, is_fresh=is_fresh))
    try:
        event = read_record(record, retry_state.origin, limits.max_record_bytes)
    except UnreadableEvent as error:
        found = (Line("read", "unreadable", str(error)), Line("verdict", "would be dead-lettered", "reason unreadable"))
        return Explanation((*lines, *found), is_readable=False)
    if isinstance(event, OtherEvent):
        found = (
            Line("read", "event type", event.event_type),
            Line("verdict", "would be skipped", SkipReason.NOT_FEEDBACK.value),
        )
        return Explanation((*lines, *found))
    lines += _event_lines(event, record, retry_state)
    if no_answer is not None:
        return Explanation((*lines, *_waiting_lines(no_answer)), event)
    webhook = next((webhook for webhook in webhooks if webhook.tenant == event.tenant), None)
    lines += _webhook_lines(event, webhook, len(webhooks))
    rules = tuple(rule_answers(event, webhook))
    decided = decide(event, webhook)
    if isinstance(decided, SkipReason):
        lines.append(Line("verdict", "would be skipped", decided.value))
        return Explanation(tuple(lines), event, rules=rules)
    if isinstance(decided, ParkReason):
        lines.append(Line("verdict", "would be held", f"the webhook is {decided}"))
        return Explanation(tuple(lines), event, rules=rules)
    webhook, body = decided
    pending = PendingDelivery.of(
        event, webhook, body, retry_state.attempts, Priority.NEW, ProcessingAttempt(AssignmentEpoch())
    )
    lines += _request_lines(pending, limits)
    return Explanation(tuple(lines), event, rules=rules, headers=tuple(shown_headers(pending, now)))


def _record_lines(record: Record, retry_state: RetryState, *, is_fresh: bool) -> Iterator[Line]:
    yield Line("read", "record", f"{place_of(record)}, {len(record.value or b'')} bytes")
    headers = {name: value or b"" for name, value in record.headers}
    if is_fresh or PREFIX + "origin-topic" not in headers:
        return
    yield Line("read", "first stood at", str(retry_state.origin))
    yield Line("read", "first seen", _time(retry_state.first_seen))
    yield Line("read", "so far", f"{retry_state.attempts} attempts, {retry_state.parks} times parked")
    if retry_state.reason:
        detail = headers.get(PREFIX + "detail", b"").decode(errors="replace")
        status = "" if retry_state.last_status is None else f", last answer {retry_state.last_status}"
        yield Line("read", "because of", retry_state.reason + status + (f": {detail}" if detail else ""))
    if retry_state.not_before:
        yield Line("read", "due at", _time(retry_state.not_before))


def _event_lines(event: DeliveryEvent, record: Record, retry_state: RetryState) -> Iterator[Line]:
    is_xdm = spelling_of(record.value or b"") == "xdm"
    has_own_id = event.webhook_id != webhook_id(event.tenant, None, retry_state.origin)
    yield Line("read", "spelling", "xdm, with URI keys" if is_xdm else "xed, with short keys")
    if absent := absent_values_of(record.value or b""):
        yield Line("read", "counts as absent", ", ".join(absent))
    yield Line("read", "tenant", f"{event.tenant} (organisation and sandbox)")
    yield Line("read", "sandbox id", event.sandbox_id or "not given")
    yield Line("read", "channel", event.channel)
    yield Line("read", "status", event.status)
    made_from = (
        "the event's _id" if has_own_id else f"the record's first place, {retry_state.origin}, since it has no _id"
    )
    yield Line("read", "webhook-id", f"{event.webhook_id}, made from tenant and {made_from}")


def _waiting_lines(no_answer: NoAnswer) -> Iterator[Line]:
    match no_answer:
        case WebhookUnusable():
            reason = ParkReason.UNUSABLE
        case WebhookUndecided():
            reason = ParkReason.UNDECIDED
        case StoreUnavailable():
            yield Line("webhook", "unknown", str(no_answer))
            yield Line("verdict", "would wait", "until the webhook store answers, unless an older answer is known")
            return
        case _:
            assert_never(no_answer)
    yield Line("webhook", reason.value, str(no_answer))
    yield Line("verdict", "would be held", f"reason {reason.value}, unless the process has an older version in use")


def _webhook_lines(event: DeliveryEvent, webhook: Webhook | None, known: int) -> Iterator[Line]:
    if webhook is None:
        yield Line("webhook", "none", f"{event.tenant} has no webhook; {known} others are in use")
        return
    config = webhook.config
    yield Line("webhook", "name", config.name)
    yield Line("webhook", "from", webhook.source)
    yield Line("webhook", "endpoint", f"{config.origin} (path not shown: it may hold a secret)")
    yield Line("webhook", "authentication", _authentication(config))
    yield Line("webhook", "signatures", "none" if config.signing is None else f"{len(config.signing.secrets)}")


def _authentication(config: WebhookConfig) -> str:
    auth = config.auth
    if not isinstance(auth, JwtAuth):
        return "none"
    if auth.sign is not None:
        return f"a JWT that we sign ({auth.sign.algorithm.value}) in header {auth.header}"
    grant = "" if auth.fetch is None else auth.fetch.grant
    return f"a token fetched from the token endpoint ({grant}) in header {auth.header}"


def rule_answers(event: DeliveryEvent, webhook: Webhook | None) -> list[RuleAnswer]:
    """Returns the answer of every rule, in the order of `eligibility`, also after the first that fails."""
    # `read_record` has applied the first rule: what it returns is a message feedback event.
    rules = [reason for reason in SkipReason if reason is not SkipReason.NOT_FEEDBACK]
    return [RuleAnswer(reason, *_answer(reason, event, webhook)) for reason in rules]


def _answer(reason: SkipReason, event: DeliveryEvent, webhook: Webhook | None) -> tuple[bool | None, str]:
    """Returns whether the event passes the rule of `eligibility` with this reason, and why.

    `eligibility` runs for every event and stops at the first rule that fails, so the rules are written twice. A test
    compares the two for every reason.
    """
    if reason is SkipReason.TEST_EXECUTION:
        is_test = bool(event.profile.is_test_execution)
        return not is_test, "a test execution" if is_test else "no test execution"
    if webhook is None:
        is_it = reason is SkipReason.NO_WEBHOOK
        return (False, f"no webhook for {event.tenant}") if is_it else (None, "there is no webhook")
    config = webhook.config
    match reason:
        case SkipReason.NOT_FEEDBACK:
            return True, "it is message feedback"
        case SkipReason.NO_WEBHOOK:
            other = is_of_another_sandbox(event, webhook.subscription)
            ids = f"sandbox id {event.sandbox_id}, wanted {config.sandbox_id}"
            return not other, ids if other else "the tenant has a webhook"
        case SkipReason.WEBHOOK_DISABLED:
            return config.enabled, "enabled" if config.enabled else "it is switched off"
        case SkipReason.CHANNEL:
            return event.channel in config.channels, f"{event.channel}; wanted: {', '.join(config.channels)}"
        case SkipReason.STATUS:
            return event.status in config.events, f"{event.status}; wanted: {', '.join(config.events)}"
        case SkipReason.CAMPAIGN:
            objection = campaign_objection(event, webhook.subscription)
            return objection is None, objection or f"campaign {event.execution.campaign_id} is wanted"
        case _:
            assert_never(reason)


def _request_lines(pending: PendingDelivery, limits: Limits) -> Iterator[Line]:
    config, body = pending.webhook.config, pending.body
    yield Line("request", "POST", f"{config.origin}/…, within {config.timeout or limits.timeout_s:g} s")
    yield Line("request", "payload", f"version {config.payload}, {len(body)} bytes: {body.decode()}")
    if len(body) > limits.max_body:
        detail = f"reason too_large: the payload has {len(body)} bytes, over the limit of {limits.max_body}"
        yield Line("verdict", "would be dead-lettered", detail)
    else:
        yield Line(
            "verdict", "would be sent", f"to {config.origin}, as attempt {pending.attempts + 1}, if the lane allows"
        )


def shown_headers(pending: PendingDelivery, now: float) -> Iterator[tuple[str, str]]:
    """Returns the headers of the event's next attempt, in order, with secrets masked; `now` in Unix seconds.

    No key is used: nothing is signed for it, and a configuration whose secrets are empty will do.
    """
    config = pending.webhook.config
    endpoint = Endpoint.of(config)
    count = 0 if config.signing is None else config.signing.count_at(now)
    signer = Signer(tuple(lambda _: MASKED for _ in range(count))) if count else None
    token: HttpHeader | None = None
    if isinstance(config.auth, JwtAuth):
        token = (config.auth.header, f"{config.auth.scheme} {MASKED}".strip())
    yield "host", endpoint.authority
    yield "content-type", "application/json"
    yield "user-agent", USER_AGENT
    yield "content-length", str(len(pending.body))
    yield from request_headers(pending, pending.attempts + 1, now, signer, token)
    for name, value in endpoint.headers:
        is_secret = suggests_a_secret(name) or isinstance(config.headers.get(name), Secret)
        yield name, MASKED if is_secret else value


def masked(text: str, headers: HttpHeaders, token: HttpHeader | None, config: WebhookConfig) -> str:
    """Masks in a text everything that `shown_headers` masks, of the headers and the token that were really sent."""
    values = [value for name, value in headers if suggests_a_secret(name)]
    values += [config.header_texts()[name] for name, value in config.headers.items() if isinstance(value, Secret)]
    if token is not None:
        values += [token[1], token[1].rpartition(" ")[2]]  # with its scheme, and without
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_HIDDEN:
            text = text.replace(value, MASKED)
    return text


def lane_lines(lane: Mapping[str, object] | None) -> tuple[Line, ...]:
    """Returns lines about the tenant's lane, as the ops endpoint describes it; None: the instance has none."""
    if lane is None:
        return (Line("lane", "none", "this instance has lately sent nothing for the tenant"),)
    return tuple(
        Line("lane", name.replace("_", " "), str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in lane.items()
        if name not in ("org", "sandbox") and value is not None
    )


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} seconds since 1970"
