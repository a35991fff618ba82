"""Queries the ops port of a running dispatcher."""

from collections.abc import Mapping
from typing import Annotated

import aiohttp
import orjson
import typer

from dispatcher.errors import DispatcherError

WITHIN_S = 5.0

OpsUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Ask a running instance, too, at its ops port: http://127.0.0.1:9090")
]


async def ask(ops: str, path: str) -> tuple[int, Mapping[str, object]]:
    """The status (200, 404 or 503) and the JSON object that answer a GET; the latter is empty with a 404.

    Raises:
        DispatcherError: no dispatcher answers within 5 s.
    """
    timeout = aiohttp.ClientTimeout(total=WITHIN_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{ops.rstrip('/')}{path}") as answer:
            if answer.status == 404:
                return 404, {}
            if answer.status not in (200, 503):
                raise DispatcherError(f"the instance at {ops} answers {path} with HTTP {answer.status}")
            content = orjson.loads(await answer.read())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise DispatcherError(f"the instance at {ops} does not answer {path}: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise DispatcherError(f"the instance at {ops} does not answer {path}: it is no dispatcher")
    return answer.status, content


async def check_ready(ops: str) -> None:
    """Raises DispatcherError with the reasons if the instance is not ready."""
    status, content = await ask(ops, "/readyz")
    checks = content.get("checks")
    if not isinstance(checks, dict):
        raise DispatcherError(f"the instance at {ops} does not answer /readyz: it is no dispatcher")
    if status != 200:
        reasons = [
            f"{name}: {check.get('reason', 'no')}"
            for name, check in checks.items()
            if not check.get("ok") and check.get("required", True)
        ]
        raise DispatcherError(f"the instance at {ops} is not ready: {'; '.join(reasons)}")
