"""Logging: one line for each event that ends, as JSON for machines or in colour for a terminal.

Names of log events are constant strings, data are fields. No payload, address, token, header value or full URL is
ever a field. The standard library's loggers (aiokafka, aiohttp) go through the same end.
"""

import logging
import sys
from collections.abc import Sequence

import orjson
import structlog
from structlog.typing import Processor

from dispatcher.settings import LogSettings

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: LogSettings) -> None:
    """Set structlog and the standard library's logging up for the whole process; writes to standard error."""
    level = _LEVELS[settings.level]
    shared: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    exceptions: list[Processor]
    renderer: Processor
    if settings.format == "json":
        # Tracebacks without local variables: they would hold payloads and tokens.
        formatter = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        exceptions = [structlog.processors.ExceptionRenderer(formatter)]
        renderer = structlog.processors.JSONRenderer(
            serializer=lambda value, **_: orjson.dumps(value, default=str).decode()
        )
    else:
        exceptions = []
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.INFO))
    # aiokafka warns about every hiccup of a broker with a traceback of its own; our consumer tells the same once.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # It tells of every change, and a log written into a watched directory is one: each line would bring the next.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
