"""Fixtures and options of all tests. The fixture `kafka` is a real broker if Java and Maven are installed, and in CI.

Servers are here if tests of several packages need them: each process of pytest-xdist then starts them once. A fixture
that several conftests import is one of each, and one of a package ends with every change of package.
"""

import gc
import logging
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import pytest
import structlog
from hypothesis import HealthCheck, settings

from dispatcher.demo import child_process
from dispatcher.demo.broker import EmbeddedBroker
from tests.integration.brokers import mistreatable_broker
from tests.kafka import maven
from tests.kafka.apache_kafka import ApacheKafka
from tests.stores_sql.postgres import Postgres, bin_directory, install

_IN_CI = os.environ.get("CI") == "true"

# An example may be slow because the machine is.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


class Broker(Protocol):
    """A broker for tests, real or embedded. Both create unknown topics on their own, with four partitions."""

    @property
    def bootstrap_servers(self) -> str:
        """Address for PLAINTEXT clients."""
        ...

    @property
    def kind(self) -> str:
        """`Apache Kafka 4.x.y` or `embedded broker`."""
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --all-faults. Without it only the quick part of the fault suite runs."""
    parser.addoption("--all-faults", action="store_true", help="run the whole fault suite (minutes)")


def pytest_configure(config: pytest.Config) -> None:
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if worker and workers:  # each of pytest-xdist's processes has ports of its own: a free one is taken a second later
        child_process._PORTS = child_process._PORTS[int(worker.removeprefix("gw")) :: int(workers)]
    config.addinivalue_line("markers", "all_faults: of the fault suite, only with --all-faults")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test by bytes only if they are text: the others may differ per process, as gzip's, which hold the time.

    The processes of pytest-xdist refuse to run if they collect different names.
    """
    if isinstance(val, bytes) and not (len(val) < 100 and val.isascii() and val.decode().isprintable()):
        return argname
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the long fault scenarios unless --all-faults is given."""
    if config.getoption("--all-faults"):
        return
    long = [item for item in items if item.get_closest_marker("all_faults")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


def pytest_collection_finish() -> None:
    """Keeps what was collected out of garbage collections: one that looks at ten thousand tests takes a second."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> list[str]:
    """Names the broker, the databases and the browser of this run."""
    return [_broker(), _databases(), _browser()]


def _browser() -> str:
    from tests.console.pages.browsing import CHROMIUM  # it imports Playwright

    if not CHROMIUM:
        return "browser: none: chromium is not installed, and tests of the console's pages need it"
    version = subprocess.run([CHROMIUM, "--version"], capture_output=True, text=True, check=False).stdout
    return f"browser: {version.strip() or CHROMIUM}"


def _databases() -> str:
    postgres = bin_directory()
    if postgres is None:
        return f"database: SQLite {sqlite3.sqlite_version}; PostgreSQL: not installed"
    version = subprocess.run([postgres / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return f"database: SQLite {sqlite3.sqlite_version}, {version.strip()}"


def _broker() -> str:
    if not (missing := maven.missing_tools()):
        return f"kafka: Apache Kafka {maven.kafka_version()}"
    if _IN_CI:
        return f"kafka: none, and tests that need it will fail: not installed: {', '.join(missing)}"
    return f"kafka: {EmbeddedBroker.kind}, not Apache Kafka: not installed: {', '.join(missing)}"


@pytest.fixture(scope="session", autouse=True)
def _loggers_follow_their_configuration() -> Iterator[None]:
    """Keeps a command that a test runs in this process from caching loggers: later tests read what theirs write."""
    configure = structlog.configure

    def without_cache(**options: Any) -> None:
        configure(**options | {"cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", without_cache)
        yield


@pytest.fixture(autouse=True)
def _configuration_of_logs_ends_with_the_test() -> Iterator[None]:
    """Restores the configuration of structlog and of the standard library's logging that a command replaced."""
    before, root = structlog.get_config(), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in (None, "dispatcher", "aiokafka", "asyncio", "watchfiles")}
    handlers = root.handlers[:]
    yield
    if structlog.get_config() != before:
        structlog.configure(**before)
        root.handlers = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
async def kafka() -> AsyncIterator[Broker]:
    """One broker for the whole run, with the default options; make topics with names of your own. Don't stop it."""
    missing = maven.missing_tools()
    if missing and _IN_CI:
        pytest.fail(f"CI tests against Apache Kafka; not installed: {', '.join(missing)}")
    async with EmbeddedBroker() if missing else ApacheKafka() as broker:
        yield broker


@pytest.fixture(scope="session")
async def mortal() -> AsyncIterator[ApacheKafka]:
    """One broker with every way in for the whole run, which tests may stop; each leaves it running and open."""
    async with mistreatable_broker() as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the whole run. Don't stop it; `Postgres()` makes another."""
    if install() is None:
        if _IN_CI:
            pytest.fail("CI tests against PostgreSQL; not installed")
        pytest.skip("PostgreSQL is not installed")
    with Postgres() as server:
        yield server
