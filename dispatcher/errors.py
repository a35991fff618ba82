"""Defines every error that this program raises on purpose.

Expected results are values (`outcomes`); these errors prevent a step from returning one. An error that is not in this
file is a bug, and is handled as one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeVar

E = TypeVar("E", bound=Exception)


class DispatcherError(Exception):
    """Base of all errors of this program."""

    @property
    def for_tenants(self) -> str:
        """Message that is safe to show tenants: it reveals nothing about the operator's services."""
        return str(self)


MAX_PROBLEMS = 20
"""Mistakes that are reported of one document; of the others, their number."""
MAX_MESSAGE: Final = 1_000
"""Characters of a problem's message; the middle of a longer one is left out."""


class ProblemCode(Enum):
    """Kinds of problems that a form words in its own way."""

    NOT_GIVEN = auto()
    """A value that has to be given; the problem's `subject` describes it."""
    EMPTY_TEXT = auto()
    EMPTY_LIST = auto()


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the configuration: its place, what is wrong, how to correct it."""

    message: str
    key: str = ""
    """Dotted path of the value, `kafka.topic` or `webhooks[2].url`."""
    file: str = ""
    """File the value was read from, or `environment variable NAME`."""
    line: int | None = None
    """Line in the file, from 1."""
    code: ProblemCode | None = None
    subject: str = ""
    """The part of the message that follows its code: what is missing."""

    def __post_init__(self) -> None:
        if len(self.message) > MAX_MESSAGE:  # it may name a path of any length
            half = MAX_MESSAGE // 2
            object.__setattr__(self, "message", f"{self.message[:half]} … {self.message[-half:]}")

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line is not None else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


def first_problems(problems: Sequence[Problem], total: int | None = None) -> list[Problem]:
    """Returns the first 20 problems, and one that says how many more there are.

    Args:
        total: how many there are in all, if `problems` are not all of them.
    """
    more = max(len(problems), total or 0) - MAX_PROBLEMS
    if more <= 0 or (total is None and more == 1):  # the line "1 more" wouldn't be shorter, or was counted before
        return list(problems)
    file = problems[0].file if problems else ""
    return [*problems[:MAX_PROBLEMS], Problem(f"and {more:,} more problems: correct these first", file=file)]


class ConfigError(DispatcherError):
    """The configuration can't be used. The error names every problem that was found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UnreadableEvent(DispatcherError):
    """The record can't be read as a delivery event. The message is what the dead letter will carry.

    The message never quotes values of the event, only places and types: it reaches logs.
    """


class StoreUnavailable(DispatcherError):
    """A database did not answer, and the cache, if there is one, has no entry. The message may name the database."""

    def __init__(self, message: str, store: str = "webhook database") -> None:
        super().__init__(message)
        self.store = store
        """The database in words for tenants."""

    @property
    def for_tenants(self) -> str:
        return f"the {self.store} does not answer right now"


class ValuesRefused(StoreUnavailable):
    """The database can't hold a value that it was given: the same statement fails again."""

    @property
    def for_tenants(self) -> str:
        return f"the {self.store} can't hold one of these values"


class SearchTooLong(StoreUnavailable):
    """A search did not end within the time that it may take. One over fewer entries may."""

    def __init__(self, message: str, within_s: float) -> None:
        super().__init__(message, "history store")
        self.within_s = within_s

    @property
    def for_tenants(self) -> str:
        return f"the search takes longer than {self.within_s:g} s: choose a shorter time or another filter"


class StoreReplaced(DispatcherError):
    """The history store's positions have changed since they were read: another database, a backup, another worker."""


class BrokerUnavailable(DispatcherError):
    """Kafka didn't answer, or with an error. The message names the broker, so it is for operators only."""

    @property
    def for_tenants(self) -> str:
        return "Kafka does not answer right now"


class PartitionsUnavailable(BrokerUnavailable):
    """Kafka didn't answer for some partitions of a topic: events of the others were sent again."""

    @property
    def for_tenants(self) -> str:
        return "Kafka does not answer for some of the events right now: only the others were sent"


class WebhookUnusable(DispatcherError):
    """The tenant has a webhook that can't be used: its configuration or a secret has a mistake. Its events are held."""


class WebhookUndecided(DispatcherError):
    """A webhook file can't be read, so it is unknown whether the tenant has a webhook. Its events wait."""


class NotWritten(DispatcherError):
    """A record could not be written to a retry or dead-letter topic; its event stays in flight."""

    @property
    def for_tenants(self) -> str:
        return "Kafka does not take records right now"


class RecordTooLarge(NotWritten):
    """The topic doesn't accept a record of this size. The message names the topic, the size and the topic's setting."""

    @property
    def for_tenants(self) -> str:
        return "Kafka does not accept a record of this size"


class TokenUnavailable(DispatcherError):
    """No access token could be fetched or signed. The event is handled like one whose delivery failed."""

    def __init__(self, message: str, *, is_local: bool = False) -> None:
        super().__init__(message)
        self.is_local = is_local
        """The dispatcher's own side failed: no evidence against the tenant."""


class StillHeld(DispatcherError):
    """A held event still has to wait: it stays in the topic of held events."""

    def __init__(self, reason: str, for_s: float) -> None:
        super().__init__(reason)
        self.for_s = for_s
        """Seconds for which it makes no sense to try it again."""


class BrakeEngaged(DispatcherError):
    """Too many records of a partition would become dead letters, so the partition stops instead."""


class Draining(DispatcherError):
    """The process is stopping, or may have lost the partition. The partition's next reader processes the event."""


class NotFound(DispatcherError):
    """The object doesn't exist, or belongs to an organisation that the caller may not see. The two look the same."""


class NotAllowed(DispatcherError):
    """The caller may not change this organisation's objects."""


class BadLink(DispatcherError):
    """A link in an e-mail can't be used. The message says why, for the recipient."""


class TooSoon(DispatcherError):
    """The action was done a moment ago; the message says when it can be repeated."""


class AlreadyExists(DispatcherError):
    """The organisation and sandbox have a webhook already."""

    def __init__(self, message: str, existing_id: str) -> None:
        super().__init__(message)
        self.existing_id = existing_id


class AlreadyRunning(DispatcherError):
    """A job of the same kind is unfinished, so that another one would do the same work twice."""

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class IssuerUnavailable(DispatcherError):
    """The sign-in service did not answer, or its answer doesn't follow OpenID Connect."""


class Busy(DispatcherError):
    """The process has too much to do, or is starting or stopping. The same request succeeds a minute later."""


class NotSetUp(DispatcherError):
    """The operator has not set up what the request needs. The message names the setting."""


class WouldBeSkipped(DispatcherError):
    """Events can't be sent again, because they would be skipped: their webhook is switched off, or there is none."""


class EditConflict(DispatcherError):
    """The object was changed meanwhile; the caller has to read it again and repeat the edit."""

    def __init__(self, message: str, current_version: int) -> None:
        super().__init__(message)
        self.current_version = current_version


def unchained(error: E) -> E:
    """Returns an error whose traceback leaves out the one that it replaces, as `raise … from None` does.

    Compiled modules need it besides `from None`, which mypyc ignores, because the replaced error may quote an event.
    """
    error.__suppress_context__ = True
    return error
