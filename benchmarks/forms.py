"""The forms of the dispatcher that are compared: interpreted and compiled, on this Python and on others that are named.

Another Python needs the dispatcher's dependencies, mypy and setuptools: a virtual environment with
`requirements/test.txt`. What the interpreter saves and what the compiler saves are then separate figures.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[1]
_LIMIT_S: Final = 1800
_BUILD: Final = """
import importlib.util, json, os, platform, sysconfig
given, flags = (sysconfig.get_config_var(name) or "" for name in ("CONFIG_ARGS", "PY_CORE_CFLAGS"))
used = [name for name, option in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto")) if option in given]
level = [flag for flag in flags.split() if flag.startswith("-O")][-1:]
library = [] if os.path.exists(importlib.util.cache_from_source(json.__file__)) else ["standard library without bytecode"]
said = [*level, " and ".join(used) or "no PGO or LTO named", *library]
print(json.dumps([platform.python_version(), ", ".join(said)]))
"""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to run the dispatcher."""

    name: str
    """`compiled, Python 3.14.8`."""
    python: str
    """Path of the interpreter."""
    package: Path
    """Folder that holds the package `dispatcher` in this form."""
    build: str
    """How the interpreter was built, as far as its own configuration names it: `-O2, PGO and LTO`. A standard library
    without bytecode is named, because each start compiles it."""

    def command(self, prelude: str = "") -> list[str]:
        """Returns the command that starts the dispatcher, after the statement `prelude`."""
        code = f"import sys; sys.path[0] = {str(self.package)!r}; {prelude or 'pass'}"
        return [self.python, "-c", f"{code}; from dispatcher.__main__ import main; main()"]


def forms(pythons: Sequence[str], folder: Path) -> list[Form]:
    """Returns both forms for each interpreter; compiles into `folder`, which takes a minute or more each.

    Raises:
        RuntimeError: an interpreter lacks something, or mypyc refused.
    """
    made = []
    for number, python in enumerate(pythons or [sys.executable]):
        version, build = json.loads(_output([python, "-c", _BUILD]))
        tree = folder / f"compiled-{number}"
        shutil.copytree(_ROOT / "dispatcher", tree / "dispatcher", ignore=shutil.ignore_patterns("__pycache__"))
        _output([python, str(_ROOT / "hatch_build.py"), str(tree)])
        for name, package in (("interpreted", _ROOT), ("compiled", tree)):
            # As pip does when it installs: without bytecode each start would compile every module.
            _output([python, "-m", "compileall", "-q", str(package / "dispatcher")])
            form = Form(f"{name}, Python {version}", python, package, build)
            said = _output([*form.command(), "--version"])
            if f"({name})" not in said:
                raise RuntimeError(f"{form.name}: the dispatcher says {said!r}")
            made.append(form)
    return made


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=_ROOT.parent, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
