"""A history store of each kind, receivers, and a notifier over them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.database import Database
from tests.notifications.receivers import Certificates, certificates
from tests.stores_sql.conftest import empty_url, postgres

__all__ = ["empty_url", "postgres"]


@pytest.fixture(scope="session")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def history(empty_url: Secret, tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(empty_url, create=True, setting="history.url")
    yield opened
    await opened.close()
