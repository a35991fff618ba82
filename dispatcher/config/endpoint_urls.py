"""Checks the URL of a webhook or of a token endpoint. Each error says what to change."""

import re
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    Field,
)

MAX_URL = 2048


def origin_of(url: str) -> str:
    """Returns the origin of a valid URL, `https://host[:port]`, without the scheme's default port."""
    parts = split_url(url)
    host = parts.hostname or ""
    bracketed = f"[{host}]" if ":" in host else host
    own = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{bracketed}" + (f":{parts.port}" if parts.port not in (None, own) else "")


def split_url(url: str) -> SplitResult:
    """Returns the parts of an endpoint's URL.

    Raises:
        ValueError: it can't be an endpoint; the message says what to change.
    """
    if len(url) > MAX_URL:
        raise ValueError(f"longer than {MAX_URL} characters: shorten the path or the query")
    if not re.fullmatch(r"[\x21-\x7e]+", url) or "\\" in url:
        raise ValueError(
            "only visible ASCII, no spaces and no backslash: percent-encode the path, write the host as xn--…"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message quotes the URL
        raise ValueError(
            "not a URL: write https://host/path, a port as a number up to 65535, an IPv6 address in brackets"
        ) from None
    if parts.scheme not in ("https", "http"):
        raise ValueError("must begin with https://")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password: use authentication or a header parameter")
    if "#" in url:
        raise ValueError("must not carry a fragment (#…): it is never sent")
    if not parts.hostname or port == 0 or parts.netloc.endswith(":"):
        raise ValueError("names no host, or an empty port: write https://host/path")
    return parts


def _checked_url(url: str) -> str:
    split_url(url)
    return url


EndpointUrl = Annotated[str, AfterValidator(_checked_url), Field(repr=False)]
"""A URL in the form that `split_url` requires."""
