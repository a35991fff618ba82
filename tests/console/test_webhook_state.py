"""The state that is shown follows the configuration first, then who answers, the history, lanes and latest attempts."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from dispatcher.console.model import LaneModel
from dispatcher.console.sources.attempt_counts import Failing
from dispatcher.console.webhook_state import judged_state
from dispatcher.contract.fleet_state import FleetState
from dispatcher.stores.sql.history_states import StateReport
from dispatcher.stores.sql.records import ListedWebhook
from tests.console.api.fakes import LUMA, attempt_of

WEBHOOK = ListedWebhook("id", LUMA, "Luma", enabled=True, paused=False, updated_at=datetime.fromtimestamp(0, UTC))
LANE = LaneModel("active", "closed", 0, False, 0, 1, 2, 16, 0.01, 1)
ATTEMPT = attempt_of(LUMA)


def report(state: FleetState) -> StateReport:
    return StateReport(LUMA, state, 1.0, is_current=state is not FleetState.UNKNOWN)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "active"),
        ({"webhook": replace(WEBHOOK, enabled=False, paused=True)}, "off"),
        ({"webhook": replace(WEBHOOK, paused=True), "report": report(FleetState.FAILING)}, "paused"),
        ({"report": report(FleetState.FAILING)}, "failing"),
        ({"report": report(FleetState.UNSTABLE), "is_answering": False}, "unknown"),  # evidence is of the past
        ({"report": report(FleetState.ACTIVE), "is_answering": False, "lane": None}, "unknown"),
        ({"report": report(FleetState.DISABLED), "is_answering": False, "lane": None}, "unknown"),
        ({"webhook": replace(WEBHOOK, enabled=False), "is_answering": False}, "off"),
        ({"webhook": replace(WEBHOOK, paused=True), "is_answering": False}, "paused"),
        ({"report": report(FleetState.ACTIVE), "is_answering": None, "lane": None}, "active"),  # none is configured
        ({"report": report(FleetState.UNKNOWN), "is_answering": None, "lane": None}, "unknown"),
        ({"is_answering": None, "lane": None}, "unknown"),
        ({"is_answering": None, "lane": None, "failing": Failing(ATTEMPT, 1, 5, 5)}, "failing"),
        ({"report": report(FleetState.ACTIVE), "lane": replace(LANE, suspended=True)}, "disabled"),
        ({"report": report(FleetState.DISABLED), "lane": None}, "disabled"),
        ({"report": report(FleetState.UNKNOWN), "lane": replace(LANE, state="unstable")}, "unstable"),
        ({"report": report(FleetState.UNKNOWN), "lane": None}, "unknown"),
        ({"report": report(FleetState.PAUSED), "lane": None}, "unknown"),  # it was resumed a moment ago
        ({"lane": replace(LANE, state="disabled")}, "disabled"),
        ({"lane": None}, "active"),  # dispatchers answer, and none has sent anything
        ({"lane": None, "is_answering": False}, "unknown"),
        ({"failing": Failing(ATTEMPT, 1, 5, 5)}, "failing"),
        ({"failing": Failing(ATTEMPT, 1, 4, 4)}, "active"),
        ({"failing": Failing(ATTEMPT, 1, 38, 40)}, "active"),
    ],
)
def test_one_state_of_all_evidence(changes: dict[str, Any], expected: str) -> None:
    given: dict[str, Any] = {"webhook": WEBHOOK, "report": None, "lane": LANE, "failing": None, "is_answering": True}
    given |= changes
    found = judged_state(
        given["webhook"], given["report"], given["lane"], given["failing"], is_answering=given["is_answering"]
    )
    assert found == expected
