"""Checks that nothing a tenant sees of real attempts reveals which names of the operator's network exist."""

from dataclasses import asdict

from structlog.testing import capture_logs

from dispatcher.contract.outcomes import Attempt, FailureReason
from dispatcher.contract.records import AssignmentEpoch, ProcessingAttempt
from dispatcher.delivery.history_recorder import HistoryRecorder
from dispatcher.delivery.pending_delivery import AttemptResult, Deferred, PendingDelivery
from dispatcher.delivery.permits import Priority
from dispatcher.delivery.verdicts import judge
from dispatcher.transport.token_client import TokenClient
from tests.transport.conftest import Opener, post_to
from tests.transport.servers import NameServer
from tests.unit.examples import EMAIL_EVENT, read, webhook
from tests.unit.history.test_recorder import recorder

ZONE = {
    "name-1.example": [["10.0.0.1"]],
    "name-2.example": [["8.8.8.8", "169.254.169.254"]],
    "name-3.example": [["name-1.example"]],
    "name-4.example": [["::1"]],
    "name-5.example": [[]],  # the name exists and has no address
}
UNKNOWN = "name-0.example"


def recorded(made: HistoryRecorder) -> bytes:
    return b"".join(encoded.value(1, 1) for _, encoded in made.take_all(at_end=True))


def pending() -> PendingDelivery:
    processing = ProcessingAttempt(AssignmentEpoch())
    return PendingDelivery.of(read(EMAIL_EVENT), webhook(), b"{}", 0, Priority.NEW, processing)


async def test_the_history_and_parked_events_show_denied_and_unknown_names_alike(opening: Opener) -> None:
    shown, reasons = set(), {}
    async with NameServer().running() as names:
        names.zone |= ZONE
        async with opening(allow=(), nameservers=(names.address,)) as transport:
            for host in (UNKNOWN, *ZONE, "name-1.example"):  # the last answer comes from the cache
                attempt = await transport.post(post_to(f"https://{host}/"))
                reasons[host] = attempt.failure
                judgement, made, event = judge(attempt), recorder(), pending()
                made.record_attempt(event, 1, attempt, judgement)
                deferred = AttemptResult(1, attempt, judgement).as_delivery()
                assert isinstance(deferred, Deferred)
                shown.add(f"{recorded(made)!r} {deferred!r}".replace(host, "name"))
    assert len(shown) == 1, shown
    assert "name has no public address" in shown.pop()
    assert reasons[UNKNOWN] == FailureReason.DNS
    assert reasons["name-1.example"] == FailureReason.EGRESS_DENIED, "metrics and verdict show operators the difference"


async def test_a_token_endpoint_can_not_be_used_to_list_internal_names(opening: Opener) -> None:
    shown = set()
    async with NameServer().running() as names:
        names.zone |= ZONE
        async with opening(allow=(), nameservers=(names.address,)) as transport:
            for host in (UNKNOWN, *ZONE):
                answer = await TokenClient(transport).post_form(f"https://{host}/token", (), b"", 20.0)
                shown.add(repr(asdict(answer)).replace(host, "name"))
    assert len(shown) == 1, shown


async def test_the_operator_s_log_says_once_which_name_resolves_to_what(opening: Opener) -> None:
    async with NameServer().running() as names:
        names.zone |= ZONE
        async with opening(allow=(), nameservers=(names.address,)) as transport:
            with capture_logs() as lines:
                for _ in range(3):
                    await transport.post(post_to("https://name-1.example/"))
                await transport.post(post_to(f"https://{UNKNOWN}/"))
    found = [(line["host"], line["why"]) for line in lines if "denied address" in line["event"]]
    assert len(found) == 1, lines
    assert found[0][0] == "name-1.example"
    assert "not public (private)" in found[0][1]


async def test_mistakes_visible_in_the_url_are_reported(opening: Opener) -> None:
    async with opening(allow=(), deny=("partner.example",)) as transport:
        attempts: list[Attempt] = [
            await transport.post(post_to(url))
            for url in ("https://10.0.0.1/", "https://partner.example/", "https://db/")
        ]
    assert [attempt.failure for attempt in attempts] == [
        FailureReason.URL_DENIED,
        FailureReason.EGRESS_DENIED,
        FailureReason.EGRESS_DENIED,
    ]
    assert "not public (private)" in attempts[0].detail
    assert "deny-list" in attempts[1].detail
    assert "inside the operator's network" in attempts[2].detail
