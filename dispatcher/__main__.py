"""`dispatcher` and `python -m dispatcher`."""

import gc
import os
import signal
import sys


def main() -> None:
    """Loads the commands, and runs the one in `sys.argv`. SIGTERM ends it at once until the command handles it."""
    signal.signal(signal.SIGTERM, _end)
    gc.disable()  # what is loaded stays: looking for garbage in it takes a tenth of the time
    try:
        from dispatcher.cli import main as run_command
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        gc.enable()
    run_command()


def _end(number: int, _: object) -> None:
    """Ends the process as the signal would by itself. The first process of a container gets no signal otherwise."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
