"""A CA that the transport under test trusts, both transports, and endpoints to send to."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trustme

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.transport import Endpoint, Request, Transport, open_transport
from tests.transport.servers import Endpoint as Server
from tests.transport.servers import Script

Opener = Callable[..., AbstractAsyncContextManager[Transport]]
Serving = Callable[[Script], AbstractAsyncContextManager[Server]]

IN_TIME_S = 4.5
"""Who was cut by a short deadline took less than this on a machine that stands still for seconds, too; every other
deadline is longer (DNS: 5 s)."""


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_bundle(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1", "hooks.example", "proxy.example"))).configure_cert(context)
    return context


@pytest.fixture(scope="session")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    return server_context(authority)


@pytest.fixture
def serving(tls: ssl.SSLContext) -> Serving:
    """`async with serving(script) as server`: a TLS server with a certificate that is trusted."""
    return lambda script: Server(script, tls).running()


@pytest.fixture(params=["aiohttp", "lean"])
def opening(request: pytest.FixtureRequest, ca_bundle: Path) -> Opener:
    """`async with opening(proxy=…) as transport`: the transport with egress settings of one's own."""

    def opener(**egress: object) -> AbstractAsyncContextManager[Transport]:
        settings = {"allow": ("127.0.0.0/8",), "ca_bundle": ca_bundle} | egress
        return open_transport(DeliverySettings(transport=request.param), EgressSettings.model_validate(settings))

    return opener


@pytest.fixture
async def transport(opening: Opener) -> AsyncIterator[Transport]:
    async with opening() as transport:
        yield transport


def post_to(
    target: str | Endpoint, body: bytes = b"{}", headers: tuple[tuple[str, str], ...] = (), **changes: object
) -> Request:
    """Returns a request whose deadlines no test reaches, even on a machine that stalls for seconds."""
    endpoint = Endpoint.at(target) if isinstance(target, str) else target
    values: dict[str, object] = {"timeout_s": 20.0, "connect_timeout_s": 20.0} | changes
    return Request(endpoint, headers, body, **values)  # type: ignore[arg-type]  # values of a test
