"""Lanes to test with, and events that wait in them."""

import asyncio
from dataclasses import dataclass, field

from dispatcher.config.settings import DeliverySettings
from dispatcher.contract.outcomes import Attempt, FailureReason
from dispatcher.contract.tenant import TenantKey
from dispatcher.delivery.lane_scheduler import Lane, LaneScheduler
from dispatcher.delivery.permits import LaneRefusal, Permit, Priority
from dispatcher.delivery.verdicts import Judgement, judge

GOOD = judge(Attempt(0.1, status=200))
BAD = judge(Attempt(0.1, status=500))
NOT_REACHED = judge(Attempt(0.1, failure=FailureReason.CONNECT_REFUSED))
OVERLOADED = judge(Attempt(0.1, status=503))


def lanes(**settings: object) -> LaneScheduler:
    return LaneScheduler(DeliverySettings.model_validate(settings))


def tenant(number: int) -> TenantKey:
    return TenantKey(f"org-{number}", "prod")


@dataclass(eq=False)
class Event:
    """Waits in a lane; keeps the permit or the refusal that it was given."""

    lane: Lane
    priority: Priority = Priority.NEW
    entry: Permit | LaneRefusal | None = None
    task: "asyncio.Task[None]" = field(init=False)

    def __post_init__(self) -> None:
        self.task = asyncio.create_task(self._enter())

    async def _enter(self) -> None:
        self.entry = await self.lane.acquire(self.priority)

    @property
    def has_permit(self) -> bool:
        return isinstance(self.entry, Permit)

    @property
    def refused(self) -> str | None:
        return self.entry.reason.value if isinstance(self.entry, LaneRefusal) else None

    def end(self, judgement: Judgement = GOOD, hold_s: float | None = None) -> None:
        assert isinstance(self.entry, Permit)
        self.lane.release(self.entry, judgement, hold_s)

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def send(lane: Lane, judgement: Judgement, times: int = 1, takes_s: float = 0.0) -> None:
    """Whole attempts, one after another."""
    for _ in range(times):
        entry = await lane.acquire(Priority.NEW)
        assert isinstance(entry, Permit), entry
        await asyncio.sleep(takes_s)
        lane.release(entry, judgement)
