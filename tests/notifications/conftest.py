"""A history store of each kind, receivers, and a notifier over them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.stores.sql.database import Database
from tests.notifications.receivers import (
    Certificates,
    Endpoint,
    MailServer,
    certificates,
    https_endpoint,
    mail_server,
)
from tests.notifications.scene import Scene, open_scene, settings_for
from tests.stores_sql.conftest import empty_url

__all__ = ["empty_url"]


@pytest.fixture(scope="session")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def history(empty_url: Secret, tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(empty_url, create=True, setting="history.url")
    yield opened
    await opened.close()


@pytest.fixture
async def mail(issued: Certificates) -> AsyncIterator[MailServer]:
    async with mail_server(issued.server, implicit=False) as server:
        yield server


@pytest.fixture
async def endpoint(issued: Certificates) -> AsyncIterator[Endpoint]:
    async with https_endpoint(issued.server) as server:
        yield server


@pytest.fixture
async def scene(
    tmp_path: Path, issued: Certificates, mail: MailServer, endpoint: Endpoint, history: Database
) -> AsyncIterator[Scene]:
    async with open_scene(settings_for(tmp_path, issued, mail, endpoint), history) as opened:
        yield opened
