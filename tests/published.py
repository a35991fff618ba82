"""Published material that tests compare with and the project doesn't copy: XDM schemas and examples, Kubernetes CRDs.

It lies in a folder `shared` beside the checkout. If the folder is missing, the tests that need it are left out and say
so in one line; if PUBLISHED_MATERIAL=required is set, its absence fails them.
"""

import os
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"
"""What is the project's own: the reference payload."""
_SHARED = Path(__file__).parents[2] / "shared"


def published(path: str) -> Path:
    """Returns the path of a published file, such as `contracts/xdm/identitymap.example.1.json`.

    Skips the calling test if the file is missing, or fails it if PUBLISHED_MATERIAL=required is set.
    """
    found = _SHARED / path
    if not found.exists():
        reason = "left out: the published XDM examples and CRDs are not beside this checkout (../shared)"
        if os.environ.get("PUBLISHED_MATERIAL") == "required":
            pytest.fail(f"{path}: {reason}")
        pytest.skip(reason)
    return found
