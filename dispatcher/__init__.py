"""Feedback dispatcher: a Kafka stream of message-delivery events in, reliable webhooks out."""

import os
import sys

__version__ = "0.2.0"

# pydantic looks for plugins in the metadata of all installed packages: a hundredth of a cold start, for none. Set the
# variable to "" to have them.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

# structlog imports these if they are installed: 4 MB and a twentieth of a cold start. Nothing of ours uses structlog
# with them, and whatever else imports them still can.
_UNUSED = [name for name in ("rich", "greenlet", "twisted") if name not in sys.modules]
for _name in _UNUSED:
    sys.modules[_name] = None  # type: ignore[assignment]  # an import of it raises ImportError
import structlog  # noqa: E402, F401

for _name in _UNUSED:
    del sys.modules[_name]
