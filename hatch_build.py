"""Build hook: compiles the hot modules with mypyc if the environment variable DISPATCHER_COMPILE is 1, true, yes or on.

Without it the wheel is pure Python: no compiler is needed, and none is looked for. See
docs/decisions/0008-compile-the-hot-path-with-mypyc.md for what is compiled and what mypyc can't do.
"""

import ast
import os
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
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
GROUP = "dispatcher_compiled"
MODULES = (
    "config/webhook_revision",
    "contract/encoded_entries", "contract/event_reader", "contract/events", "contract/feedback", "contract/outcomes",
    "contract/recipient", "contract/record_text", "contract/records",
    "delivery/breaker", "delivery/concurrency", "delivery/deliverer", "delivery/direct_attempt",
    "delivery/endpoint_health", "delivery/endpoint_state", "delivery/history_recorder", "delivery/lane_scheduler",
    "delivery/pending_delivery", "delivery/permits", "delivery/rate", "delivery/retry_policy", "delivery/verdicts",
    "flow/dead_letter_brake", "flow/decision", "flow/fast_path", "flow/pipeline", "flow/undelivered",
    "kafka/committing", "kafka/consumer", "kafka/decoded_records", "kafka/feeding", "kafka/offset_tracker",
    "kafka/partition", "kafka/processing", "kafka/read_ahead",
    "stores/cache",
    "telemetry/fast_metrics", "telemetry/tenant_metrics", "telemetry/trace_choice",
    "transport/http1/client", "transport/http1/connection", "transport/http1/pool", "transport/request",
    "transport/request_head", "transport/resolved_addresses", "transport/tls_transport",
)  # fmt: skip
"""Modules that run for every event. Those with msgspec structs or pydantic models stay interpreted: mypyc can't
compile classes with a metaclass."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled modules to a wheel, beside their sources."""

    def dependencies(self) -> list[str]:
        """Returns what the build needs beyond hatchling. mypyc reads the annotations of our dependencies, too."""
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
    value = os.environ.get(SWITCH, "").strip().lower()
    if value in YES:
        return True
    if value in ("", *NO):
        return False
    sys.exit(f"{SWITCH} is {os.environ[SWITCH]!r}: set {', '.join(YES)} to compile, {', '.join(NO)} not to")


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
            path.write_text(with_native_values(path.read_text()))
        script = "import hatch_build; hatch_build.build_extensions()"
        search = os.pathsep.join(
            filter(None, [str(root), os.environ.get("PYTHONPATH")])
        )  # pip's own environment is in it
        environment = os.environ | {"PYTHONPATH": search, "MYPYC_OUTPUT": str(target)}
        command = [sys.executable, "-c", script]
        subprocess.run(command, cwd=sources, env=environment, check=True)  # noqa: S603  (our own interpreter)


def with_native_values(source: str) -> str:
    """Returns a module whose dataclasses mypyc compiles into native classes. Every line keeps its number.

    mypyc can't compile a class that a decorator replaces, as slots do (a compiled class has no `__dict__` anyway), and
    leaves the `__init__` that `dataclasses` makes interpreted. So the decorator loses its slots, and `__init__` is
    written out on the empty line after the class. It assigns what is frozen, so the guard goes: mypy has checked.
    """
    lines = [*source.splitlines(), ""]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "dispatcher.contract.values":
            lines[node.lineno - 1] = _import_of_values(node)
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if (options := _options(decorator)) is not None and node.end_lineno is not None:
                init = _init(node)
                if init is not None and not lines[node.end_lineno].strip():
                    lines[node.end_lineno] = init
                    options["init"] = False
                given = ", ".join(f"{name}={value}" for name, value in options.items())
                lines[decorator.lineno - 1] = f"@dataclass({given})" if given else "@dataclass"
    return "\n".join(lines)


def _import_of_values(node: ast.ImportFrom) -> str:
    """Returns an import of one line with `dataclass` in place of `slots_dataclass`."""
    names = [alias.name for alias in node.names if alias.name != "slots_dataclass"]
    rest = f"; from {node.module} import {', '.join(names)}" if names else ""
    return f"from dataclasses import dataclass{rest}"


def _options(decorator: ast.expr) -> dict[str, object] | None:
    """Returns the options of a dataclass, without its slots and its guard; None for another decorator."""
    match decorator:
        case ast.Name(id="slots_dataclass"):
            return {"unsafe_hash": True}
        case ast.Name(id="dataclass"):
            return {}
        case ast.Call(func=ast.Name(id="dataclass")):
            options = {str(one.arg): ast.literal_eval(one.value) for one in decorator.keywords}
            if options.pop("frozen", False) and options.get("eq", True):
                options["unsafe_hash"] = True
            return {name: value for name, value in options.items() if name not in ("slots", "weakref_slot")}
    return None


def _init(node: ast.ClassDef) -> str | None:
    """Returns the `__init__` of a dataclass on one line; None if it is more than one assignment for each field."""
    parameters, assignments = ["self"], []
    for field in node.body:
        if isinstance(field, ast.FunctionDef) and field.name in ("__init__", "__post_init__"):
            return None
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        default = field.value
        if isinstance(default, ast.Call) and getattr(default.func, "id", "") == "field":
            options = {one.arg: one.value for one in default.keywords}
            if not options.keys() <= {"repr", "default"}:
                return None
            default = options.get("default")
        name = field.target.id
        parameter = f"{name}: {ast.unparse(field.annotation)}"
        parameters.append(parameter if default is None else f"{parameter} = {ast.unparse(default)}")
        assignments.append(f"self.{name} = {name}")
    return f"    def __init__({', '.join(parameters)}) -> None: {'; '.join(assignments)}"


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
