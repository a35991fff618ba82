"""`make bench`: measure, print the table, write `benchmarks/results/latest.json`, the picture beside it, and the README's table.

The dispatcher is compiled first, and measured compiled and interpreted. `PYTHONS="/path/one/python /path/two/python"` measures both
forms on each of these interpreters; the last one's compiled form is the dispatcher of all other figures. A run in which other
processes took over 5 % of the subject's core is discarded, counted, and made again.

`FULL=1` takes five runs of each figure and adds the scenarios that differ in what an event costs. `--peer NAME=COMMAND` adds a
program of yours: it is started with KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPIC, TARGET_URL and TARGET_CA in its environment, has to
post each event of the topic to the URL, and is measured like the others.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from benchmarks import machine, nginx, plots, report
from benchmarks.suite import Plan, measure

RESULTS = Path(__file__).parent / "results" / "latest.json"
README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--full", action="store_true", default=os.environ.get("FULL") == "1")
    parser.add_argument(
        "--python",
        action="append",
        default=os.environ.get("PYTHONS", "").split(),
        metavar="PATH",
        help="an interpreter with the dependencies, also as PYTHONS; the last one's compiled form is the dispatcher of all figures",
    )
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # topics come and go: it would log each one
    if missing := nginx.missing():
        sys.exit(f"not installed: {' '.join(missing)} (apt-get install)")
    peers = dict(one.split("=", 1) for one in given.peer)
    result = {
        "machine": machine.described(),
        **asyncio.run(measure(Plan(full=given.full, peers=peers, pythons=given.python))),
    }
    print(report.table(result))
    if not given.no_write:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        if not plots.draw(result, RESULTS.with_name("rates.png")):
            print("no picture: chromium is not installed")
        README.write_text(report.put_into(README.read_text(), result))


if __name__ == "__main__":
    main()
