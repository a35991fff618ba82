"""The JSON of a record's value: an Adobe Experience Platform streaming envelope around an XDM event.

`docs/events.md` describes it for producers. The structs describe the short spelling (*xed*). They are what the reader
decodes, and `config/schema/event.json` is made from them. A field that is not listed here is neither read nor checked.
`Raw` fields are passed on as they came: the reader checks that they are JSON, and nothing else. The types are what
producers should write: a value of another type makes the event unreadable only in the fields that decide about it (see
`field_values`).
"""

from itertools import repeat
from typing import Annotated, Final

from msgspec import Meta, Raw, Struct, field

FEEDBACK: Final = "message.feedback"
MAX_DEPTH: Final = 32
"""Nesting of a value that is passed on as it came."""
MOST_TEXT: Final = 10_000
"""Characters."""
MOST_STATUS: Final = 200
"""Characters."""

DECIDES: Final = Meta(
    description="Decides about the event, which is unreadable if the value is of another type.",
    extra={"decides": True},
)
"""Annotates the fields that say what happened, whose event it is, and whether it is sent."""
TIME: Final = Meta(description="ISO 8601.", extra={"time": True})
RequiredText = Annotated[str, Meta(max_length=MOST_TEXT)]
Text = RequiredText | None
DecidingText = Annotated[Text, DECIDES]
Time = Annotated[Text, TIME]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""A number of 64 bits: receivers read the payload into such numbers."""
NULL: Final = Raw(b"null")
_null: Final = repeat(NULL).__next__
"""A default factory written in C: msgspec can't describe a default that is `Raw` in a JSON Schema."""


class Sandbox(Struct, gc=False):
    """The sandbox that the message was sent from."""

    id: DecidingText = None
    name: DecidingText = None


class Header(Struct, gc=False, rename="camel"):
    """The streaming envelope's header. Record headers of the same names supply the fields that it lacks."""

    ims_org_id: DecidingText = None
    sandbox: Sandbox | None = None
    request_id: Text = None
    webhooks_enabled: Annotated[
        bool | None, DECIDES, Meta(description="false: feedback webhooks are switched off for the campaign.")
    ] = None


class MessageExecution(Struct, gc=False):
    """Identifies the message."""

    execution_id: Text = field(default=None, name="messageExecutionID")
    message_id: Text = field(default=None, name="messageID")
    message_type: Text = field(default=None, name="messageType")
    campaign_id: DecidingText = field(default=None, name="campaignID")
    campaign_version_id: Text = field(default=None, name="campaignVersionID")
    campaign_type: DecidingText = field(default=None, name="campaignType")


class ChannelReference(Struct, gc=False):
    """The channel, by its URI."""

    uri: Annotated[Text, DECIDES, Meta(description="`https://ns.adobe.com/xdm/channels/email`")] = field(
        default=None, name="_id"
    )


class MessageProfile(Struct, gc=False):
    """Describes the message's recipient and channel."""

    message_profile_id: Text = field(default=None, name="messageProfileID")
    request_id: Text = field(default=None, name="requestID")
    channel: ChannelReference | None = None
    is_test_execution: Annotated[bool | None, DECIDES] = field(default=None, name="isTestExecution")


class MessageFailure(Struct, gc=False):
    """Why the message was not delivered."""

    category: Raw = field(default_factory=_null)
    type: Raw = field(default_factory=_null)
    code: Raw = field(default_factory=_null)
    reason: Raw = field(default_factory=_null)


class Feedback(Struct, gc=False, rename="camel"):
    """The message's status, and its reasons."""

    feedback_status: Annotated[
        str,
        DECIDES,
        Meta(
            min_length=1,
            max_length=MOST_STATUS,
            description="error, exclude, sent, bounce, delay, duplicate, denylist, delivered, read, unknown; "
            "further values pass.",
        ),
    ]
    message_failure: MessageFailure | None = None
    message_exclusion: Raw = field(default_factory=_null)
    offers: Raw = field(default_factory=_null)
    retry_count: Whole | None = None
    response_code: Whole | None = None
    response_duration_millis: Whole | None = None
    encoding: Text = None
    number_of_message_parts: RequiredText | Whole | None = None
    delivery_timestamp: Time = None


class EmailContext(Struct, gc=False):
    """The address of an e-mail."""

    address: Text = None


class SmsContext(Struct, gc=False):
    """The number of an SMS."""

    profile_number: Text = field(default=None, name="profileNumber")


class JourneyManagement(Struct, gc=False, rename="camel"):
    """The part of the event that describes the message."""

    feedback: Feedback = field(name="messageDeliveryfeedback")
    message_execution: MessageExecution | None = None
    message_profile: MessageProfile | None = None
    email_channel_context: EmailContext | None = None
    sms_channel_context: SmsContext | None = None


class Experience(Struct, gc=False):
    """Adobe's own fields of the event."""

    management: JourneyManagement = field(name="customerJourneyManagement")


class Identity(Struct, gc=False):
    """One of the recipient's identities in a namespace."""

    id: RequiredText
    primary: bool | None = None


class Entity(Struct, gc=False):
    """The XDM experience event."""

    event_type: Annotated[RequiredText, DECIDES] = field(name="eventType")
    experience: Experience = field(name="_experience")
    id: Text = field(default=None, name="_id")
    timestamp: Time = None
    identity_map: dict[str, list[Identity]] | None = field(default=None, name="identityMap")


class Body(Struct, gc=False):
    """The streaming envelope's content."""

    entity: Entity = field(name="xdmEntity")


class Envelope(Struct, gc=False):
    """The value of a record: an Adobe Experience Platform streaming envelope around an XDM message-feedback event.

    The short spelling (*xed*) is described; the one with URI keys (*xdm*) is read as well. Further fields pass.
    A value of another type counts as absent, a number in place of a text as its digits, except in the fields that
    decide about the event: `imsOrgId`, `sandbox`, `eventType`, `feedbackStatus`, the channel's `_id`,
    `isTestExecution`, `webhooksEnabled`, `campaignID` and `campaignType`.
    """

    body: Body
    header: Header | None = None
