"""Instructions an event, by stage: `python -m benchmarks.instructions`. The same code gives the same number, within 1 %.

Counts with callgrind (Debian package valgrind) what `hot_path` runs in user space; the kernel's work isn't in it, and
the processor's instructions for SHA are not used. `--check` compares with `budget.json`, which has one for each interpreter and form, and fails with the number if the
path has become longer; `--set-budget` writes the present numbers there, on purpose.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.hot_path import BATCH, STAGES
from dispatcher.telemetry.build_form import FORM

BUDGET: Final = Path(__file__).parent / "budget.json"
MARGIN: Final = 0.04
"""Past the budget by more than this is a failure; past it the other way, the budget should be lowered."""
EVENTS: Final = 300
_NAMES: Final = [stage.__name__ for stage in STAGES]
_LIMIT_S: Final = 300


class CannotCount(RuntimeError):
    """There is no valgrind, or the run under it failed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One stage."""

    stage: str
    instructions: int
    """An event."""
    file: Path
    """For callgrind_annotate."""


def count(stages: list[str], events: int, directory: Path, transport: str = "lean") -> list[Counted]:
    """Count the stages over this number of events; the files stay in `directory`.

    Raises:
        CannotCount: with the reason.
    """
    if shutil.which("valgrind") is None:
        raise CannotCount("valgrind is not installed: tests/system_packages.sh names what to install")
    command = [
        "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={directory}/callgrind.out",
        sys.executable, "-m", "benchmarks.hot_path", "count", f"--events={events}", f"--transport={transport}", *stages,
    ]  # fmt: skip
    if shutil.which("setarch") is not None:
        command = ["setarch", "--addr-no-randomize", *command]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=BUDGET.parents[1], env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode != 0:
        raise CannotCount(
            f"the run under valgrind ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    found: dict[str, Counted] = {}
    for file in sorted(directory.glob("callgrind.out*")):
        head = file.read_text(errors="replace")
        name = re.search(r"^desc: Trigger: Client Request: (\w+)$", head, re.M)
        total = re.search(r"^(?:totals|summary): (\d+)", head, re.M)
        if name is not None and total is not None:
            found[name[1]] = Counted(name[1], round(int(total[1]) / events), file)
    return [found[name] for name in _NAMES if name in found]


def interpreter() -> str:
    """Returns what a count depends on beside the code and the locked packages: `CPython 3.11.7, x86_64, PGO`."""
    options = sysconfig.get_config_var("CONFIG_ARGS") or ""
    build = "PGO" if "--enable-optimizations" in options else "no PGO"
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, {build}"


def budget() -> dict[str, int]:
    """Returns the instructions that each stage may take with this interpreter and in this form; empty if none is set."""
    found: dict[str, int] = json.loads(BUDGET.read_text()).get(interpreter(), {}).get(FORM, {})
    return found


def over_budget(counted: list[Counted]) -> list[str]:
    """Returns one line for each stage past its budget."""
    lines, allowances = [], budget()
    for one in counted:
        allowed = allowances.get(one.stage)
        if allowed is not None and one.instructions > allowed * (1 + MARGIN):
            more = one.instructions / allowed - 1
            lines.append(
                f"{one.stage}: {one.instructions:,} instructions an event, {more:.1%} over the budget of {allowed:,}"
            )
    return lines


ADVICE: Final = """\
The path of an event has become longer. To see where:
    python -m benchmarks.instructions whole --functions        C functions, by their own instructions
    python -m benchmarks.hot_path profile whole                Python functions, by cProfile
or keep the files (--keep DIRECTORY) and ask callgrind_annotate.
If it is worth it: python -m benchmarks.instructions --set-budget, and say why in the commit."""


def _set_budget(counted: list[Counted]) -> None:
    budgets = json.loads(BUDGET.read_text())
    old = budget()
    kept = {name: old[name] for name in _NAMES if name in old}
    budgets.setdefault(interpreter(), {})[FORM] = kept | {one.stage: one.instructions for one in counted}
    BUDGET.write_text(json.dumps(budgets, indent=2) + "\n")


def _print_functions(one: Counted, events: int, most: int) -> None:
    tool = ["callgrind_annotate", "--threshold=100", "--auto=no", str(one.file)]
    listing = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    print(f"\n{one.stage}: instructions an event, by function's own")
    shown = 0
    for line in listing.splitlines():
        found = re.match(r"\s*([\d,]+) \(\s*([\d.]+)%\)\s+(.+)", line)
        if found is None or "PROGRAM TOTALS" in line:
            continue
        place = re.sub(r"^(?:\S*/)?([^/]+:)", r"\1", found[3])
        place = re.sub(r" \[\S*/([^/\]]+)\]$", r" [\1]", place)
        print(f"  {int(found[1].replace(',', '')) / events:10,.0f}  {found[2]:>5} %  {place[:100]}")
        shown += 1
        if shown == most:
            break


def main() -> int:
    """Print the counts; with `--check`, status 1 past the budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *_NAMES], default=[], help=f"of {', '.join(_NAMES)}")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"a multiple of {BATCH}")
    parser.add_argument("--transport", choices=["lean", "aiohttp"], default="lean")
    parser.add_argument("--functions", type=int, nargs="?", const=30, default=0, help="show the C functions, too")
    parser.add_argument("--keep", type=Path, help="directory for the callgrind files")
    parser.add_argument("--check", action="store_true", help="compare with the budget")
    parser.add_argument("--set-budget", action="store_true", help="make these numbers the budget")
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as name:
        directory = given.keep or Path(name)
        directory.mkdir(parents=True, exist_ok=True)
        stages = given.stages or _NAMES
        if given.transport == "aiohttp":
            stages = [stage for stage in stages if stage != "post_null"]
        try:
            counted = count(stages, given.events, directory, given.transport)
        except CannotCount as error:
            print(error, file=sys.stderr)
            return 2
        allowances = budget()
        for one in counted:
            allowed = allowances.get(one.stage)
            share = "" if allowed is None else f"   budget {allowed:9,}  {one.instructions / allowed - 1:+.1%}"
            print(f"{one.stage:10} {one.instructions:9,} instructions an event{share}")
        for one in counted if given.functions else ():
            _print_functions(one, given.events, given.functions)
        if given.set_budget:
            _set_budget(counted)
        if given.check and not allowances:
            print(f"no budget is set for {interpreter()}, {FORM}: not compared", file=sys.stderr)
        if given.check and (lines := over_budget(counted)):
            print("\n".join([*lines, ADVICE]), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
