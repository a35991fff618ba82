"""`make bench`: run the benchmarks, print the table, write `benchmarks/results/latest.json`."""

import asyncio
import json
import os
import platform
from pathlib import Path

from benchmarks import isolation
from dispatcher import __version__

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> None:
    measured = asyncio.run(isolation.measure())
    result = {
        "version": __version__,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "ratios": measured.pop("ratios"),
        "isolation": measured,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
