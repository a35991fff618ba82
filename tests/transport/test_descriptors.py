"""The limit on file descriptors is raised at start, and what deliveries need is known."""

import resource

import pytest
import structlog

from dispatcher.config.settings import DeliverySettings
from dispatcher.transport import descriptors


class Limits:
    """Stands for the process's limits: the tests' own must stay."""

    def __init__(self, soft: int, hard: int, error: Exception | None = None) -> None:
        self.now = (soft, hard)
        self._error = error

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.now

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        if self._error is not None:
            raise self._error
        self.now = limits


@pytest.mark.parametrize(
    ("limits", "expected", "warnings"),
    [
        (Limits(1024, 1_048_576), 1_048_576, 0),
        (Limits(65_536, 65_536), 65_536, 0),
        (Limits(1024, 1024), 1024, 1),
        (Limits(1024, 1256), 1256, 0),
        (Limits(1024, 1255), 1255, 1),
        (Limits(1024, 4096, PermissionError("no")), 1024, 2),
        (Limits(1024, resource.RLIM_INFINITY, ValueError("no")), 1024, 2),
        (Limits(1024, resource.RLIM_INFINITY), resource.RLIM_INFINITY, 0),
    ],
)
def test_the_soft_limit_is_raised_to_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, expected: int, warnings: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.set)
    # A logger of its own: another test may have configured logging, and loggers are kept once they were used.
    monkeypatch.setattr(descriptors, "log", structlog.wrap_logger(None, wrapper_class=structlog.BoundLogger))
    with structlog.testing.capture_logs() as lines:
        assert descriptors.raise_limit(DeliverySettings()) == expected
    assert [line["log_level"] for line in lines] == ["warning"] * warnings


def test_deliveries_need_a_descriptor_for_each_connection_in_use_or_at_rest() -> None:
    assert descriptors.needed(DeliverySettings.model_validate({"max_in_flight": 100})) == 456
