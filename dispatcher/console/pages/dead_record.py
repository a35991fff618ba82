"""Pages of one dead event's record, for operators: shown as text or as bytes, and downloaded."""

from typing import Final

from aiohttp import web

from dispatcher.console.actions import open_record
from dispatcher.console.pages.renderer import Renderer
from dispatcher.console.services import person_of
from dispatcher.errors import NotFound

MOST_SHOWN: Final = 16 * 1024
"""Bytes of a value that the page shows; a download has all."""
MOST_OF_HEADER: Final = 500


def add_to(app: web.Application, renderer: Renderer) -> None:
    """Adds this module's routes to the console."""
    pages = DeadRecordPages(renderer)
    app.router.add_get("/dead-events/{dead_id}", pages.show)
    app.router.add_get("/dead-events/{dead_id}/download", pages.download)


class DeadRecordPages:
    """Serves one dead event's record to operators."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    async def show(self, request: web.Request) -> web.StreamResponse:
        dead_event, record = await open_record(self._renderer.services, person_of(request), _id(request))
        value = record.value or b""
        return await self._renderer.page(
            request,
            "dead_record.html",
            at="dead",
            dead_event=dead_event,
            content=shown(value[:MOST_SHOWN]),
            size=len(value),
            is_cut=len(value) > MOST_SHOWN,
            key=shown((record.key or b"")[:MOST_OF_HEADER]),
            headers=[(name, shown((header or b"")[:MOST_OF_HEADER])) for name, header in record.headers],
        )

    async def download(self, request: web.Request) -> web.StreamResponse:
        dead_event, record = await open_record(self._renderer.services, person_of(request), _id(request))
        headers = {"Content-Disposition": f'attachment; filename="dead-event-{dead_event.id}.bin"'}
        return web.Response(body=record.value or b"", content_type="application/octet-stream", headers=headers)


def shown(value: bytes) -> str:
    """Returns bytes as text if they are, else as lines of offset, digits and ASCII. The last character may be cut."""
    for end in range(len(value), max(len(value) - 4, -1), -1):
        try:
            text = value[:end].decode()
        except UnicodeDecodeError:
            continue
        return text if all(one.isprintable() or one in "\r\n\t" for one in text) else _dump(value)
    return _dump(value)


def _dump(value: bytes) -> str:
    lines = []
    for start in range(0, len(value), 16):
        part = value[start : start + 16]
        text = "".join(chr(one) if 32 <= one < 127 else "." for one in part)
        lines.append(f"{start:08x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def _id(request: web.Request) -> str:
    dead_id = request.match_info["dead_id"]
    if len(dead_id) > 40:
        raise NotFound("there is no such dead event")
    return dead_id
