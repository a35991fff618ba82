"""`dispatcher` and `python -m dispatcher`."""

import gc
import os
import signal
import sys


def main() -> None:
    """Loads the commands, and runs the one in `sys.argv`. SIGTERM ends it at once until the command handles it.

    So does Ctrl-C while it loads: a KeyboardInterrupt may be raised where the import system ignores it.
    """
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _end)
    is_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in the background of a shell
    if is_interruptible:
        signal.signal(signal.SIGINT, _end)
    gc.disable()  # what is loaded stays: looking for garbage in it takes a tenth of the time
    try:
        from dispatcher import cli

        app = cli.load(sys.argv[1:])
    finally:
        gc.freeze()  # else the first search goes through all of it
        gc.enable()
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main(app)


def _open_closed_streams() -> None:
    """Opens /dev/null for standard input, output and error, each if it is closed (`dispatcher run <&-`).

    Otherwise the next file or socket gets that descriptor: it would receive what is written to the stream, and libuv
    aborts the process when it closes a descriptor below 3.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free one, so it is `descriptor`
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False))


def _end(number: int, _: object) -> None:
    """Ends the process as the signal would by itself. The first process of a container gets no signal otherwise."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
