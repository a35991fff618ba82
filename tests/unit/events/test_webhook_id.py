"""webhook-id: the same for every attempt and repeat of one event, and for no other event."""

import re

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.contract.events import webhook_id
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from tests.unit.examples import EMAIL_EVENT, ORIGIN, REMOVED, email_event, read, record

TENANTS = st.builds(TenantKey, st.text(max_size=4), st.text(max_size=4))
ORIGINS = st.builds(Origin, st.text(max_size=4), st.integers(0, 3), st.integers(0, 10**12))


def test_an_id_is_pinned_for_ever() -> None:
    """A receiver recognises repeats by it, also across versions of the dispatcher: it may never change."""
    assert webhook_id(TenantKey("org", "prod"), "event", ORIGIN) == "msg_21e7b7d228c464882e64dea031250a35"


@given(TENANTS, st.none() | st.text(), ORIGINS)
def test_an_id_has_no_dots_and_reveals_nothing(tenant: TenantKey, event: str | None, origin: Origin) -> None:
    """The signature joins id, time and body by dots."""
    assert re.fullmatch(r"msg_[0-9a-f]{32}", webhook_id(tenant, event, origin))


@given(TENANTS, st.text(min_size=1), ORIGINS, ORIGINS)
def test_an_event_with_an_id_has_the_same_webhook_id_at_every_place(
    tenant: TenantKey, event: str, here: Origin, there: Origin
) -> None:
    assert webhook_id(tenant, event, here) == webhook_id(tenant, event, there)


@given(st.lists(st.tuples(TENANTS, st.none() | st.text(max_size=6), ORIGINS), min_size=2, max_size=20))
def test_different_events_never_share_an_id(events: list[tuple[TenantKey, str | None, Origin]]) -> None:
    """Also where the parts, joined, would read the same, and where two tenants use the same event id."""
    what = {(tenant, event or origin, bool(event)) for tenant, event, origin in events}

    assert len({webhook_id(*one) for one in events}) == len(what)


def test_an_event_id_that_looks_like_a_place_is_distinct_from_it() -> None:
    tenant = TenantKey("org", "prod")

    assert webhook_id(tenant, str(ORIGIN), ORIGIN) != webhook_id(tenant, None, ORIGIN)


def test_a_parked_event_without_an_id_keeps_that_of_its_first_place() -> None:
    event = email_event(_id=REMOVED)
    first = read(event)
    parked = record(event, dict(RetryState(ORIGIN, 1.0).headers()), topic="delivery-events.retry.30s", offset=7)

    assert RetryState.of(parked).origin == ORIGIN
    assert first.webhook_id == webhook_id(first.tenant, None, ORIGIN)
    assert first.webhook_id != read(EMAIL_EVENT).webhook_id
