"""Waits for what a listener does, at most a minute."""

import asyncio
from collections.abc import Callable
from contextlib import suppress


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Returns what comes until the other side closes or resets the connection."""
    received = b""
    async with asyncio.timeout(60):
        with suppress(OSError):
            while data := await reader.read(65536):
                received += data
    return received
