"""Hooks of the documentation's site (mkdocs.yml): links to files outside of docs/ lead to the repository."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(\]\()(\.\./[^)#]+)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: object) -> str:
    """Rewrites links that leave docs/; mkdocs calls this for each page."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def outside(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        if target.startswith("docs/") and not target.startswith("docs/screenshots/"):
            return found[0]
        return f"{found[1]}{config['repo_url']}/blob/main/{target}"

    return _LINK.sub(outside, markdown)
