"""Commands that run in this process leave its logging alone."""

from collections.abc import Iterator

import pytest
import structlog

from dispatcher.cli import options


@pytest.fixture(autouse=True)
def _logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    monkeypatch.setattr(options, "configure_logging", lambda settings, **_: None)
    yield
    structlog.configure(**before)
