"""Configures logging: one JSON object a line, or coloured text for a terminal.

Names of log events are constant strings, data are fields. No payload, address, token, header value or full URL is
ever a field. Lines of the standard library's loggers (aiokafka, aiohttp) pass through the same processors. For an
unexpected exception (a bug), the type and the traceback's lines are logged, but not the message, because it may quote
personal data: `KeyError: 'ada@example.com'`.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TextIO

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo, Processor

from dispatcher.config.settings import LogSettings
from dispatcher.errors import DispatcherError
from dispatcher.telemetry.log_output import LineHandler

MAX_TEXT: Final = 2000
"""Maximum number of characters of one text in a log line."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: LogSettings, *, is_quiet: bool = False) -> None:
    """Configures structlog and the standard library's logging for the whole process. Lines go to standard error.

    `is_quiet`: for commands whose output is the answer, which names each failure in one sentence. Only errors are
    logged, and none of the Kafka client's; `log.level: debug` logs everything.
    """
    is_quiet = is_quiet and settings.level != "debug"
    level = logging.ERROR if is_quiet else _LEVELS[settings.level]
    shared: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        _shorten,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    exceptions: list[Processor]
    renderer: Processor
    if settings.format == "json":
        exceptions = [structlog.processors.ExceptionRenderer(_exceptions_as_data)]
        renderer = structlog.processors.JSONRenderer(serializer=_serialized)
    else:
        exceptions = []
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_exceptions)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr) if is_quiet else LineHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    handler.addFilter(RepeatedLines("aiokafka"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.INFO))
    _set_levels(level)
    if is_quiet:
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _serialized(value: object, **_: object) -> str:
    """Returns a line as JSON, with `?` for lone surrogates: a file's name need not be UTF-8."""
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:
        return json.dumps(value, default=str, ensure_ascii=False).encode(errors="replace").decode()


def _set_levels(level: int) -> None:
    """Sets the levels of the dispatcher's and the libraries' loggers."""
    # `debug` applies to the dispatcher's own lines: libraries' debug lines quote requests, tokens and statements.
    logging.getLogger("dispatcher").setLevel(level)
    # aiokafka warns about every failed request; the dispatcher's own `kafka problem` reports each cause once.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # It logs every change. If the log file is in a watched directory, each line would cause the next.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def _shorten(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Shortens long texts, so that a line never exceeds a few kilobytes, whatever a client sent."""
    for name, value in event.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            event[name] = f"{value[:MAX_TEXT]}… ({len(value):,} characters)"
    return event


class RepeatedLines(logging.Filter):
    """Lets each message of a library's loggers pass once a minute, whatever its arguments.

    aiokafka logs each attempt to reach a broker; the `kafka problem` line already gives the reason.
    """

    EVERY_S: Final = 60.0
    MAX_MESSAGES: Final = 1000

    def __init__(self, library: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._library = library
        self._clock = clock
        self._passed_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns False if the message passed within the last minute."""
        if record.name.partition(".")[0] != self._library:
            return True
        now, message = self._clock(), str(record.msg)
        if now - self._passed_at.get(message, -math.inf) < self.EVERY_S:
            return False
        if len(self._passed_at) >= self.MAX_MESSAGES:
            self._passed_at.clear()
        self._passed_at[message] = now
        return True


WITHHELD: Final = "(message withheld: it may quote an event or a secret)"

# Local variables would hold payloads and tokens.
_transform = ExceptionDictTransformer(show_locals=False)


def _exceptions_as_data(exc_info: ExcInfo) -> list[dict[str, object]]:
    """Returns an exception and its causes as data for JSON, with the messages of unknown exceptions withheld."""
    found = _transform(exc_info)
    for stack in _with_inner(found):
        if stack["exc_type"] not in _safe_exception_names():
            stack["exc_value"] = WITHHELD
        stack.pop("exc_notes", None)
    return found


def _with_inner(stacks: Sequence[dict[str, object]]) -> Iterator[dict[str, object]]:
    for stack in stacks:
        yield stack
        groups = stack.get("exceptions")  # an exception group has a list of such lists
        for inner in groups if isinstance(groups, list) else ():
            yield from _with_inner(inner)


def _safe_exception_names() -> frozenset[str]:
    """Returns the names of the exceptions whose messages are safe to log: they quote no event and no secret."""
    names, todo = set[str](), [DispatcherError, ConnectionError, TimeoutError]
    while todo:
        kind = todo.pop()
        names.add(kind.__name__)
        todo += kind.__subclasses__()
    return frozenset(names)


def _write_exceptions(out: TextIO, exc_info: ExcInfo) -> None:
    """Writes an exception and its causes for a terminal, the last one at the end."""
    for stack in reversed(list(_with_inner(_exceptions_as_data(exc_info)))):
        frames = stack["frames"]
        for frame in frames if isinstance(frames, list) else ():
            out.write(f"\n  {frame['filename']}:{frame['lineno']} in {frame['name']}")
        out.write(f"\n{stack['exc_type']}: {stack['exc_value']}")
