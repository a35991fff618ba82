"""Build hook: compiles the hot modules with mypyc if the environment variable DISPATCHER_COMPILE is 1.

Without it the wheel is pure Python: no compiler is needed, and none is looked for. See
docs/decisions/0008-compile-the-hot-path-with-mypyc.md for what is compiled and what mypyc can't do.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script, to compile without building a wheel
    BuildHookInterface = object  # type: ignore[assignment,misc]

SWITCH = "DISPATCHER_COMPILE"
GROUP = "dispatcher_compiled"
MODULES = (
    "contract/event_reader", "contract/events", "contract/feedback", "contract/record_text", "contract/records",
    "delivery/breaker", "delivery/concurrency", "delivery/deliverer", "delivery/direct_attempt",
    "delivery/endpoint_health", "delivery/endpoint_state", "delivery/history_recorder", "delivery/lane_scheduler",
    "delivery/pending_delivery", "delivery/permits", "delivery/rate", "delivery/retry_policy", "delivery/verdicts",
    "flow/dead_letter_brake", "flow/decision", "flow/fast_path", "flow/pipeline",
    "kafka/consumer", "kafka/offset_tracker", "kafka/partition", "kafka/processing",
    "telemetry/fast_metrics",
    "transport/http1/client", "transport/http1/connection", "transport/request_head",
)  # fmt: skip
"""What runs for every event. Modules of msgspec structs and pydantic models stay interpreted: mypyc can't compile
classes with a metaclass."""
_SLOTS = re.compile(r"(?<=@dataclass\()(.*?)(?:, )?(?:weakref_)?slots=True(?:, )?")
"""A compiled class has no `__dict__` anyway, and mypyc can't compile a class that a decorator replaces."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled modules to a wheel, beside their sources."""

    def dependencies(self) -> list[str]:
        """What the build environment needs beyond hatchling; mypyc reads the annotations of what we import, too."""
        if not _is_asked_for():
            return []
        return ["mypy[mypyc]==2.4.1", "setuptools>=80", "types-pyyaml", *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, unless the wheel is editable or the switch is off."""
        if self.target_name != "wheel" or version == "editable" or not _is_asked_for():
            return
        build = Path(self.directory) / "compiled"
        shutil.rmtree(build, ignore_errors=True)
        compile_to(Path(self.root), build)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for library in build.rglob("*" + sysconfig.get_config_var("EXT_SUFFIX")):
            build_data["force_include"][str(library)] = str(library.relative_to(build))


def _is_asked_for() -> bool:
    return os.environ.get(SWITCH, "0") not in ("", "0")


def compile_to(root: Path, target: Path) -> None:
    """Compiles the hot modules of the project in `root`; the libraries go below `target`, as they are imported.

    Raises:
        subprocess.CalledProcessError: mypyc or the C compiler refused; they have said why.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as workspace:
        sources = Path(workspace)
        shutil.copytree(root / "dispatcher", sources / "dispatcher")
        shutil.copy(root / "pyproject.toml", sources)  # mypy's settings
        for module in MODULES:
            path = sources / "dispatcher" / f"{module}.py"
            path.write_text(_SLOTS.sub(r"\1", path.read_text()).replace("@dataclass()", "@dataclass"))
        script = "import hatch_build; hatch_build.build_extensions()"
        search = os.pathsep.join(
            filter(None, [str(root), os.environ.get("PYTHONPATH")])
        )  # pip's own environment is in it
        environment = os.environ | {"PYTHONPATH": search, "MYPYC_OUTPUT": str(target)}
        command = [sys.executable, "-c", script]
        subprocess.run(command, cwd=sources, env=environment, check=True)  # noqa: S603  (our own interpreter)


def build_extensions() -> None:
    """Runs mypyc and the C compiler in the current folder. A process of its own: both keep global state."""
    from mypyc.build import mypycify
    from setuptools import setup

    paths = [f"dispatcher/{module}.py" for module in MODULES]
    extensions = mypycify(paths, opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"), debug_level="0", group_name=GROUP)
    Path("pyproject.toml").unlink()  # mypy has read it; setuptools would take the project's metadata from it
    arguments = ["build_ext", "--build-lib", os.environ["MYPYC_OUTPUT"], "--build-temp", "build/objects"]
    setup(name="dispatcher", packages=[], py_modules=[], ext_modules=extensions, script_args=arguments)


if __name__ == "__main__":  # compiles in place: `python hatch_build.py FOLDER`
    compile_to(Path(__file__).parent, Path(sys.argv[1]))
