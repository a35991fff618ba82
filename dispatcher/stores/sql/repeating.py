"""Repeats a step of background work that uses a database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
from prometheus_client import Counter

from dispatcher.errors import DispatcherError
from dispatcher.telemetry import metrics

log = structlog.get_logger(__name__)


async def keep_trying(
    step: Callable[[], Awaitable[object]],
    every_s: float,
    *,
    component: str,
    if_unavailable: str,
    if_bug: str,
    failures: Counter = metrics.HISTORY_STORE_FAILURES,
) -> NoReturn:
    """Runs the step every `every_s` seconds until cancelled. Counts and logs errors; none ends it.

    Args:
        component: label of `dispatcher_errors_total` if the step has a bug.
        if_unavailable: log line if a DispatcherError ends the step: the database does not answer.
        if_bug: log line for any other error.
        failures: counts the DispatcherErrors.
    """
    while True:
        try:
            await step()
        except DispatcherError as error:
            failures.inc()
            log.warning(f"{if_unavailable}; kept trying", problem=str(error)[:300])
        except Exception:
            metrics.ERRORS.labels(component).inc()
            log.exception(f"{if_bug}; kept trying")
        await asyncio.sleep(every_s)
