"""File descriptors: every connection takes one, and many systems start a process with a soft limit of 1,024."""

import resource

import structlog

from dispatcher.config.settings import DeliverySettings

log = structlog.get_logger(__name__)

_OTHER_USES = 256
"""Kafka, DNS, files, the ops endpoint."""


def needed(delivery: DeliverySettings) -> int:
    """Returns how many descriptors deliveries may take: connections in use, as many that rest, and other uses."""
    return 2 * delivery.max_in_flight + _OTHER_USES


def raise_limit(delivery: DeliverySettings | None = None) -> int:
    """Raises the soft limit to the hard one and returns it. Logs a warning if deliveries need more.

    Args:
        delivery: None for a process that sends no events, the console or the history worker.

    Called once, at start. Running out later is never evidence against a tenant (`FailureReason.LOCAL`).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            log.warning("the limit on file descriptors can't be raised", soft=soft, hard=hard, why=str(error))
    if delivery is not None and soft != resource.RLIM_INFINITY and soft < needed(delivery):
        log.warning(
            "too few file descriptors: raise the hard limit (ulimit -Hn), or lower delivery.max_in_flight",
            limit=soft,
            needed=needed(delivery),
        )
    return soft
