"""Encodes the feedback payload, versions 1 and 2, which `docs/receiving.md` describes.

Nothing here fails: an event that was read can be encoded.
"""

from typing import Final

import msgspec
from msgspec import UNSET

from dispatcher.contract.envelope import FEEDBACK
from dispatcher.contract.events import DeliveryEvent
from dispatcher.contract.payload import (
    ChannelContextV2,
    DeliveryFeedbackV1,
    DeliveryFeedbackV2,
    ExecutionV1,
    ExecutionV2,
    FailureV1,
    FeedbackV1,
    FeedbackV2,
    Identities,
    IdentityV1,
    SandboxV1,
    StatusV1,
)

MAX_WARNED: Final = 20_000
"""Bytes of a body past which a warning is logged: the limit that Standard Webhooks recommends."""
SMS: Final = "sms"

_encode: Final = msgspec.json.Encoder().encode


def encode_feedback(event: DeliveryEvent, version: int) -> bytes:
    """Returns the body of the POST: compact JSON in UTF-8, payload version 1 or 2."""
    return _encode(_version_1(event) if version == 1 else _version_2(event))


def _version_1(event: DeliveryEvent) -> FeedbackV1:
    execution, feedback = event.execution, event.feedback
    return FeedbackV1(
        event.request_id,
        event.tenant.org,
        SandboxV1(event.sandbox_id, event.tenant.sandbox),
        event.channel,
        FEEDBACK,
        ExecutionV1(
            execution.execution_id, execution.message_type, execution.campaign_id, execution.campaign_version_id
        ),
        DeliveryFeedbackV1(
            StatusV1(event.status),
            feedback.offers,
            feedback.message_exclusion,
            _failure(event),
            feedback.retry_count,
        ),
        _identity_map(event),
    )


def _version_2(event: DeliveryEvent) -> FeedbackV2:
    execution, feedback, is_sms = event.execution, event.feedback, event.channel == SMS
    parts = feedback.number_of_message_parts
    return FeedbackV2(
        request_id=event.request_id,
        ims_org=event.tenant.org,
        sandbox=SandboxV1(event.sandbox_id, event.tenant.sandbox),
        channel=event.channel,
        event_type=FEEDBACK,
        channel_context=ChannelContextV2(event.email_address, event.sms_number) if is_sms else UNSET,
        message_execution=ExecutionV2(
            execution.execution_id,
            execution.message_type,
            execution.campaign_id,
            execution.campaign_version_id,
            message_id=execution.message_id if is_sms else UNSET,
            message_profile_id=event.profile.message_profile_id if is_sms else UNSET,
            campaign_type=execution.campaign_type,
        ),
        message_delivery_feedback=DeliveryFeedbackV2(
            StatusV1(event.status),
            feedback.offers,
            feedback.message_exclusion,
            _failure(event),
            feedback.retry_count,
            response_code=feedback.response_code if is_sms else UNSET,
            response_duration_millis=feedback.response_duration_millis if is_sms else UNSET,
            encoding=feedback.encoding,
            number_of_message_parts=str(parts) if isinstance(parts, int) else parts,
            delivery_timestamp=feedback.delivery_timestamp,
        ),
        identity_map=_identity_map(event),
    )


def _failure(event: DeliveryEvent) -> FailureV1 | None:
    failure = event.feedback.message_failure
    return None if failure is None else FailureV1(failure.category, failure.type, failure.code, failure.reason)


def _identity_map(event: DeliveryEvent) -> Identities | None:
    if event.identities is None:
        return None
    is_email = event.channel == "email"
    found: Identities = {}
    for namespace, identities in event.identities.items():
        # The identity namespace of e-mail addresses is called Email; the reference payload spells it email. An event
        # may have both. An SMS event's namespaces keep their spelling.
        name = "email" if is_email and namespace == "Email" else namespace
        written = [IdentityV1(one.id, UNSET if one.primary is None else one.primary) for one in identities]
        found[name] = found[name] + written if name in found else written
    return found
