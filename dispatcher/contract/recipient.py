"""Finds the recipient of a message. Pure; the result is personal data."""

from typing import Final

from dispatcher.contract.events import DeliveryEvent

MAX_RECIPIENT: Final = 320
"""Characters: the longest e-mail address (RFC 3696, erratum 1690)."""


def recipient_of(event: DeliveryEvent) -> str | None:
    """Returns the address or number that the message was sent to, else the recipient's primary identity."""
    if event.channel == "sms" and event.sms_number:
        return event.sms_number[:MAX_RECIPIENT]
    if event.email_address:
        return event.email_address[:MAX_RECIPIENT]
    wanted = "phone" if event.channel == "sms" else "email"
    identities = event.identities or {}
    alike = [one for name, all_ in identities.items() if name.lower() == wanted for one in all_]
    found = next((one for one in alike if one.primary), alike[0] if alike else None)
    return None if found is None else found.id[:MAX_RECIPIENT]
