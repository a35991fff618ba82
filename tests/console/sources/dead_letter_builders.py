"""Dead events, as the dispatcher buries them."""

import itertools
import json

from dispatcher.config.settings import Settings
from dispatcher.contract.outcomes import DeadReason
from dispatcher.contract.records import Origin, RetryState
from dispatcher.contract.tenant import TenantKey
from dispatcher.kafka.dead_letters import DeadLetters
from dispatcher.kafka.producer import Producer
from tests.unit.examples import a_record, email_event

LUMA, OTHER = TenantKey("luma@AdobeOrg", "prod"), TenantKey("other@AdobeOrg", "prod")
_offsets = itertools.count(1000)


class Grave:
    """Buries events of a topic."""

    def __init__(self, producer: Producer, settings: Settings) -> None:
        self._letters = DeadLetters(producer, settings.kafka.topic)
        self._topic = settings.kafka.topic

    async def dead_letter(
        self,
        tenant: TenantKey = LUMA,
        reason: DeadReason = DeadReason.EXPIRED,
        value: bytes | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
        status: str = "bounce",
        campaign: str = "winter",
    ) -> Origin:
        """Writes the dead letter of an event with nine attempts. Returns the event's original position."""
        number = next(_offsets)
        event = email_event(imsOrgId=tenant.org, feedbackStatus=status, campaignID=campaign, _id=f"event-{number}")
        event["header"]["sandbox"]["name"] = tenant.sandbox
        origin = Origin(self._topic, 0, number)
        journey = RetryState(origin, 1000.0, attempts=9, parks=4, last_status=503)
        record = a_record(
            value=json.dumps(event).encode() if value is None else value, key=str(number).encode(), headers=headers
        )
        await self._letters.dead_letter(record, journey, reason, "answered 503")
        return origin
