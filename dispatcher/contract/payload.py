"""The structs of the feedback payload, versions 1 and 2, which `docs/receiving.md` describes.

Keys and their order are the contract; absent values are null. `config/schema/payload.json` is made from these structs.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

_SMS_ONLY = Meta(description="SMS only.")


class SandboxV1(Struct, gc=False, forbid_unknown_fields=True):
    """The sandbox that the message was sent from."""

    id: str | None
    name: str


class ExecutionV1(Struct, gc=False, forbid_unknown_fields=True):
    """The part of the payload that identifies the message."""

    execution_id: str | None = field(name="messageExecutionID")
    message_type: Annotated[str | None, Meta(description="marketing, transactional")] = field(name="messageType")
    campaign_id: str | None = field(name="campaignID")
    campaign_version_id: str | None = field(name="campaignVersionID")


class ExecutionV2(ExecutionV1, gc=False, forbid_unknown_fields=True, kw_only=True):
    """The part of the payload that identifies the message."""

    message_id: Annotated[str | UnsetType | None, _SMS_ONLY] = field(default=UNSET, name="messageID")
    message_profile_id: Annotated[str | UnsetType | None, _SMS_ONLY] = field(default=UNSET, name="messageProfileID")
    campaign_type: str | None = field(name="campaignType")


class StatusV1(Struct, gc=False, forbid_unknown_fields=True):
    """The message's status."""

    value: Annotated[
        str,
        Meta(
            description="error, exclude, sent, bounce, delay, duplicate, denylist, delivered, read, unknown; "
            "others may come."
        ),
    ]


class FailureV1(Struct, gc=False, forbid_unknown_fields=True):
    """Why the message was not delivered."""

    category: Raw
    type: Raw
    code: Raw
    reason: Raw


class DeliveryFeedbackV1(Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """The message's status, and its reasons."""

    feedback_status: StatusV1
    offers: Raw
    message_exclusion: Raw
    message_failure: FailureV1 | None
    retry_count: int | None


class DeliveryFeedbackV2(DeliveryFeedbackV1, gc=False, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """The message's status, and its reasons."""

    response_code: Annotated[int | UnsetType | None, _SMS_ONLY] = UNSET
    response_duration_millis: Annotated[int | UnsetType | None, _SMS_ONLY] = UNSET
    encoding: str | None
    number_of_message_parts: str | None
    delivery_timestamp: str | None


class IdentityV1(Struct, gc=False, forbid_unknown_fields=True):
    """One of the recipient's identities in a namespace."""

    id: str
    primary: bool | UnsetType = UNSET


class ChannelContextV2(Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """The recipient's addresses."""

    profile_address: str | None
    profile_number: str | None


Identities = dict[str, list[IdentityV1]]


class FeedbackV1(Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """Version 1 of the payload."""

    request_id: str | None
    ims_org: str
    sandbox: SandboxV1
    channel: Annotated[str, Meta(description="email or sms")]
    event_type: Literal["message.feedback"]
    message_execution: ExecutionV1
    message_delivery_feedback: DeliveryFeedbackV1
    identity_map: Identities | None


class FeedbackV2(Struct, gc=False, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Version 2 of the payload: version 1 and the fields that Journey Optimizer has added since."""

    request_id: str | None
    ims_org: str
    sandbox: SandboxV1
    channel: Annotated[str, Meta(description="email or sms")]
    event_type: Literal["message.feedback"]
    channel_context: Annotated[ChannelContextV2 | UnsetType, _SMS_ONLY] = UNSET
    message_execution: ExecutionV2
    message_delivery_feedback: DeliveryFeedbackV2
    identity_map: Identities | None
