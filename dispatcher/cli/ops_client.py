"""Queries the ops port of a running dispatcher."""

from collections.abc import Mapping
from typing import Annotated

import aiohttp
import orjson
import typer

from dispatcher.config.settings import OpsSettings
from dispatcher.errors import DispatcherError
from dispatcher.transport.failures import TransportError
from dispatcher.transport.tls_contexts import TlsContexts

WITHIN_S = 5.0

OpsUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Ask a running instance, too, at its ops port: http://127.0.0.1:9090 (https with ops.tls)"
    ),
]


async def ask(ops: str, path: str, settings: OpsSettings | None = None) -> tuple[int, Mapping[str, object]]:
    """Sends a GET. Returns the status (200, 404 or 503) and the JSON object in the answer, empty if the status is 404.

    Args:
        settings: how the certificate is verified (`ops.tls`), and the token to send (`ops.token`).

    Raises:
        DispatcherError: no dispatcher answers within 5 s, or it answers with another status.
    """
    tls = None if settings is None else settings.tls
    token = None if settings is None else settings.token
    headers = {} if token is None else {"Authorization": f"Bearer {token.reveal_text().strip()}"}
    timeout = aiohttp.ClientTimeout(total=WITHIN_S)
    try:
        context = TlsContexts(None if tls is None else tls.ca).of_operator()
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(
                f"{ops.rstrip('/')}{path}",
                ssl=context,
                server_hostname=None if tls is None else tls.server_name,
                allow_redirects=False,
            ) as answer,
        ):
            if answer.status == 404:
                return 404, {}
            if answer.status not in (200, 503):
                raise DispatcherError(f"the instance at {ops} answers {path} with HTTP {answer.status}")
            content = orjson.loads(await answer.read())
    except (aiohttp.ClientError, TransportError, TimeoutError, ValueError) as error:
        raise DispatcherError(f"the instance at {ops} does not answer {path}: {_why(error)}") from None
    if not isinstance(content, dict):
        raise DispatcherError(f"the instance at {ops} does not answer {path}: it isn't a dispatcher")
    return answer.status, content


def _why(error: Exception) -> str:
    if isinstance(error, TransportError):
        return error.detail
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or type(error.certificate_error).__name__
        return f"its certificate is refused ({reason}): set ops.tls.ca and ops.tls.server_name"
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return "that isn't an address: write http://127.0.0.1:9090, https with ops.tls, brackets around IPv6 addresses"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name can't be resolved"
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        return f"can't connect ({error.strerror or type(error.os_error).__name__})"
    if isinstance(error, TimeoutError):
        return f"no answer within {WITHIN_S:g} s"
    if isinstance(error, aiohttp.ClientError):
        return f"{type(error).__name__} (is it https with ops.tls, and http without?)"
    return "it isn't a dispatcher"


async def check_ready(ops: str, settings: OpsSettings | None = None) -> None:
    """Raises DispatcherError with the reasons if the instance is not ready."""
    status, content = await ask(ops, "/readyz", settings)
    checks = content.get("checks")
    if not isinstance(checks, dict):
        raise DispatcherError(f"the instance at {ops} does not answer /readyz: it isn't a dispatcher")
    if status != 200:
        reasons = [
            f"{name}: {check.get('reason', 'no')}"
            for name, check in checks.items()
            if not check.get("ok") and check.get("required", True)
        ]
        raise DispatcherError(f"the instance at {ops} is not ready: {'; '.join(reasons)}")
