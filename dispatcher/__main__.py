"""`dispatcher` and `python -m dispatcher`."""

import gc


def main() -> None:
    """Loads the commands, and runs the one in `sys.argv`."""
    gc.disable()  # what is loaded stays: looking for garbage in it takes a tenth of the time
    try:
        from dispatcher.cli import main as run_command
    finally:
        gc.enable()
    run_command()


if __name__ == "__main__":
    main()
