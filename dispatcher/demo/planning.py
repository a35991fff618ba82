"""Plans the demo's events: the same events for the same seed, each with its known outcome.

Which records are skipped or unreadable is decided here, beforehand: the accounts compare the dispatcher with it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from dispatcher.contract.events import webhook_id
from dispatcher.contract.outcomes import SkipReason
from dispatcher.contract.records import Origin
from dispatcher.contract.tenant import TenantKey
from dispatcher.demo.events import CAMPAIGN, FEEDBACK, Spelling, make_event, malformed_records

SANDBOX = "prod"
SMS_ONLY = "northwind"
NO_WEBHOOK = "wingtip"
WEIGHTS = {"luma": 25, "contoso": 20, "fabrikam": 18, "northwind": 14, "tailspin": 10, "adatum": 6, "wingtip": 7}
"""Share of the events, by organisation."""

WANTED = ("sent", "delivered", "bounce", "error")
UNWANTED = ("read", "delay", "exclude")
_NOWHERE = Origin("", 0, 0)


@dataclass(frozen=True, slots=True)
class Planned:
    """One record to produce, and what has to happen to it."""

    tenant: TenantKey
    event_id: str
    """Also the record's key, by which a dead letter is known again."""
    value: bytes | None
    skip: SkipReason | None = None
    """Why it must not be delivered; None if it must be."""
    readable: bool = True
    """False: it must be found in the dead-letter topic."""

    @property
    def webhook_id(self) -> str:
        """The webhook-id that its delivery must carry."""
        return webhook_id(self.tenant, self.event_id, _NOWHERE)


def plan(count: int | None = None, seed: int = 7) -> Iterator[Planned]:
    """Yields `count` records, or records without end, in the order in which to produce them."""
    chance = random.Random(seed)
    number = 0
    while count is None or number < count:
        number += 1
        org = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        tenant, event_id = TenantKey(org, SANDBOX), f"{org}-{number:06}"
        if chance.random() < 0.01:
            broken = malformed_records(org, event_id)
            yield Planned(tenant, event_id, broken[chance.choice(sorted(broken))], readable=False)
        else:
            yield _event(tenant, event_id, chance)


def _event(tenant: TenantKey, event_id: str, chance: random.Random) -> Planned:
    channel = chance.choice(("email", "sms"))
    status = chance.choice(WANTED if chance.random() < 0.9 else UNWANTED)
    test = chance.random() < 0.03
    event_type = FEEDBACK if chance.random() < 0.98 else "message.tracking"
    campaign = CAMPAIGN if chance.random() < 0.97 else None  # a journey's message has none
    spelling = Spelling.XDM if chance.random() < 0.2 else Spelling.XED
    value = make_event(
        org=tenant.org, sandbox=tenant.sandbox, event_id=event_id, channel=channel, status=status, spelling=spelling,
        event_type=event_type, campaign=campaign, test_execution=test,
    )  # fmt: skip
    skip: SkipReason | None = None  # in the order in which the dispatcher asks
    if event_type != FEEDBACK:
        skip = SkipReason.NOT_FEEDBACK
    elif test:
        skip = SkipReason.TEST_EXECUTION
    elif tenant.org == NO_WEBHOOK:
        skip = SkipReason.NO_WEBHOOK
    elif tenant.org == SMS_ONLY and channel != "sms":
        skip = SkipReason.CHANNEL
    elif status in UNWANTED:
        skip = SkipReason.STATUS
    elif campaign is None:
        skip = SkipReason.CAMPAIGN
    return Planned(tenant, event_id, value, skip)
