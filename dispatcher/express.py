"""The short way of a record that nothing stands in the way of: no task, no coroutine, no look twice.

It is `Pipeline.process` for an event that is new, readable, whose webhook is in memory, and which is skipped or
delivered by its first attempt. Everything else is given back and takes the full way, from the start or from the attempt
that it had. The law is the pipeline's: the owner hears `finished` with an outcome, or the record is not done.
"""

from typing import Final, Protocol

from dispatcher.delivery.deliveries import Deliveries
from dispatcher.delivery.flights import Flight
from dispatcher.delivery.parcels import Parcel, Tried
from dispatcher.delivery.slots import Kind
from dispatcher.events import OtherEvent
from dispatcher.feedback import MAX_WARNED, encode_feedback
from dispatcher.outcomes import Delivered, Outcome, SkipReason
from dispatcher.pipeline import Pipeline, eligibility, read_record
from dispatcher.records import Origin, Record, Turn, was_parked
from dispatcher.stores.cache import MISSING, Missing
from dispatcher.webhooks import TenantKey, Webhook

_AT_ONCE: Final = Delivered(1)


class CachedWebhooks(Protocol):
    """The webhooks in memory."""

    def peek(self, tenant: TenantKey) -> Webhook | Missing | None: ...


class Owner(Protocol):
    """Sees a record through: exactly one of these is called, within `begin` or later."""

    def finished(self, outcome: Outcome, /) -> None:
        """The record has its outcome."""

    def full_way(self, tried: Tried | None) -> None:
        """The record is to be given to `Pipeline.process`, with what was tried already."""

    def released(self) -> None:
        """Was cancelled, and that has ended."""


class Express:
    """Begins records. One for the process."""

    def __init__(
        self, pipeline: Pipeline, webhooks: CachedWebhooks, deliveries: Deliveries, max_record_bytes: int, max_body: int
    ) -> None:
        self._pipeline = pipeline
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._max_record_bytes = max_record_bytes
        self._largest = min(max_body, MAX_WARNED)

    def begin(self, record: Record, turn: Turn, owner: Owner) -> Flight | None:
        """See to a record as far as that goes without waiting; the flight that is under way then, if any is.

        Never raises for what a record may hold.
        """
        try:
            decided = self._decided(record, turn)
        except Exception:  # noqa: BLE001  (the full way meets the same one, and tells it)
            decided = None
        if decided is None:
            owner.full_way(None)
        elif isinstance(decided, Parcel):
            flight = _EventFlight(self._deliveries, decided, self._pipeline, record, owner)
            flight.depart()
            return None if flight.is_over else flight
        else:
            owner.finished(decided)
        return None

    async def go_on(self, record: Record, turn: Turn, begun: Tried) -> Outcome:
        """The full way of a record whose first attempt was made. Raises what `Pipeline.process` raises."""
        return await self._pipeline.process(record, turn, begun)

    def _decided(self, record: Record, turn: Turn) -> Parcel | Outcome | None:
        """What is to be sent, or why nothing is; None where that takes the full way."""
        if record.headers and was_parked(record.headers):
            return None
        origin = Origin(record.topic, record.partition, record.offset)
        event = read_record(record, origin, self._max_record_bytes)
        if isinstance(event, OtherEvent):
            return self._pipeline.skipped(record, SkipReason.NOT_FEEDBACK, None)
        webhook = self._webhooks.peek(event.tenant)
        if webhook is MISSING or self._deliveries.is_busy_closing:
            return None
        reason = eligibility(event, webhook)
        if reason is not None or webhook is None:
            return self._pipeline.skipped(record, reason or SkipReason.NO_WEBHOOK, event)
        body = encode_feedback(event, webhook.config.payload)
        if len(body) > self._largest:
            return None
        return Parcel.of(event, webhook, body, 0, Kind.NEW, turn, origin)


class _EventFlight(Flight):
    """A flight whose end is an outcome of its record."""

    __slots__ = ("_owner", "_pipeline", "_record")

    def __init__(
        self, deliveries: Deliveries, parcel: Parcel, pipeline: Pipeline, record: Record, owner: Owner
    ) -> None:
        super().__init__(deliveries, parcel)
        self._pipeline = pipeline
        self._record = record
        self._owner = owner

    def landed(self) -> None:
        self._pipeline.delivered_at_once(self._record, self.parcel, _AT_ONCE)
        self._owner.finished(_AT_ONCE)

    def diverted(self, tried: Tried | None) -> None:
        self._owner.full_way(tried)

    def released(self) -> None:
        self._owner.released()
