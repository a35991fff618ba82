"""Serves the files of `static/` from memory. Paths contain a hash of the content: browsers cache them for a year."""

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Self

from aiohttp import web

from dispatcher.console.compression import accepts_gzip

_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_KEPT: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Asset:
    content: bytes
    compressed: bytes
    """The content as gzip."""
    content_type: str
    path: str


class Assets:
    """The static files, by name."""

    def __init__(self, found: dict[str, _Asset]) -> None:
        self._by_name = found
        self._by_path = {asset.path: asset for asset in found.values()}

    @classmethod
    def load(cls) -> Self:
        """Reads the files from the package."""
        found = {}
        for file in files(__package__).joinpath("static").iterdir():
            content_type = _TYPES.get(f".{file.name.rpartition('.')[2]}")
            if content_type is not None:
                content = file.read_bytes()
                digest = hashlib.sha256(content).hexdigest()[:16]
                found[file.name] = _Asset(
                    content, gzip.compress(content, mtime=0), content_type, f"/static/{digest}/{file.name}"
                )
        return cls(found)

    def path(self, name: str) -> str:
        """Returns the path of a file. Raises KeyError if it doesn't exist, which is a mistake in a template."""
        return self._by_name[name].path

    def add_to(self, app: web.Application) -> None:
        """Adds this module's routes to the console."""
        app.router.add_get("/static/{digest}/{name}", self._serve)
        app.router.add_get("/favicon.ico", self._icon)

    async def _serve(self, request: web.Request) -> web.Response:
        asset = self._by_path.get(request.path)
        if asset is None:
            raise web.HTTPNotFound
        headers = {"Cache-Control": _KEPT, "Vary": "Accept-Encoding"}
        body = asset.content
        if accepts_gzip(request):
            body, headers["Content-Encoding"] = asset.compressed, "gzip"
        return web.Response(body=body, content_type=asset.content_type, charset="utf-8", headers=headers)

    async def _icon(self, _request: web.Request) -> web.Response:
        return web.Response(status=303, headers={"Location": self.path("icon.svg")})
