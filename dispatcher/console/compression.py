"""Compresses answers with gzip, unless their length could reveal a secret.

Compression makes an answer shorter if a text in it repeats. An attacker who chooses a part of the answer and sees its
length on the network can therefore guess secrets in it, piece by piece (BREACH). A page of another site can make a
browser request our pages with the session's cookie, as often as it likes, and chooses path, query and, in a POST, the
body. Therefore these are not compressed:

- answers to anything but GET and HEAD: they show what was posted, some together with a secret that was just generated;
- answers to a request with a query, and errors, whose pages contain the path, unless the browser says that a page of
  ours made the request (`Sec-Fetch-Site`), or it is authenticated by a header, which no other site can set;
- answers that set a cookie.

What others can write into stored texts, such as the answer of an endpoint, stays: the CSRF token, which is the secret
that all pages contain, is different in each answer (`csrf`).
"""

import asyncio
import gzip
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

MIN_BYTES: Final = 1024
"""Shorter answers fit in a packet anyway."""
INLINE: Final = 64 * 1024
"""Bytes that are compressed at once, in about a millisecond; more in a thread."""
LEVEL: Final = 5
TYPES: Final = frozenset(
    {"text/html", "text/plain", "text/css", "text/javascript", "application/json", "application/problem+json"}
)


@web.middleware
async def compress(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Compresses the answer if the client accepts it and nothing can be learnt from its length."""
    response = await handler(request)
    if not isinstance(response, web.Response) or response.content_type not in TYPES:
        return response
    body = response.body
    if not isinstance(body, bytes | bytearray) or hdrs.CONTENT_ENCODING in response.headers:
        return response
    response.headers.add(hdrs.VARY, "Accept-Encoding, Sec-Fetch-Site")
    is_safe = not response.cookies and is_unguided(request, response.status)
    if is_safe and len(body) >= MIN_BYTES and accepts_gzip(request):
        compressed = _gzip(body) if len(body) <= INLINE else await asyncio.to_thread(_gzip, body)
        response.body = compressed
        response.headers[hdrs.CONTENT_ENCODING] = "gzip"
    return response


def is_unguided(request: web.Request, status: int) -> bool:
    """Returns True if no other site can have chosen what the answer to this request contains."""
    if request.method not in ("GET", "HEAD"):
        return False
    is_own = request.headers.get("Sec-Fetch-Site") == "same-origin" or hdrs.AUTHORIZATION in request.headers
    return is_own or (status < 400 and not request.query_string)


def accepts_gzip(request: web.Request) -> bool:
    """Returns True if the client accepts gzip (RFC 9110, section 12.5.3)."""
    wildcard = False
    for item in ",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, [])).split(","):
        coding, *parameters = (part.strip().lower() for part in item.split(";"))
        is_wanted = not any(_is_zero(one) for one in parameters)
        if coding in ("gzip", "x-gzip"):
            return is_wanted
        if coding == "*":
            wildcard = is_wanted
    return wildcard


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().rstrip("0") in ("", "0", "0.")


def _gzip(body: bytes | bytearray) -> bytes:
    return gzip.compress(body, LEVEL, mtime=0)
