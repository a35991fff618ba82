"""What mypyc compiles wrongly without a word must not be in a module that is compiled (docs/decisions/0008)."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hatch_build import MODULES, _is_asked_for, with_native_values

PACKAGE = Path(__file__).parents[2] / "dispatcher"
AWAITS = (ast.Await, ast.AsyncWith, ast.AsyncFor)
NEVER_SUSPEND = ("asyncio.timeout(", "self._lock")
"""Context managers whose ends are coroutines that wait for nothing."""


def mistakes(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try):
            ends = [*node.finalbody, *(statement for handler in node.handlers for statement in handler.body)]
            if any(isinstance(inner, AWAITS) for statement in ends for inner in ast.walk(statement)):
                yield f"line {node.lineno}: an `except` or `finally` that awaits loses its exception to other tasks"
        elif isinstance(node, ast.AsyncWith):
            if not all(ast.unparse(item.context_expr).startswith(NEVER_SUSPEND) for item in node.items):
                yield f"line {node.lineno}: an `async with` that waits at its end loses its exception to other tasks"
        elif isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant):
            error = node.exc
            if not (isinstance(error, ast.Call) and getattr(error.func, "id", "") == "unchained"):
                yield f"line {node.lineno}: `from None` is ignored; raise unchained(…) from None"
        elif (
            isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name) and node.annotation.id == "object"
        ):
            yield f"line {node.lineno}: a field annotated as object fails at the import"


@pytest.mark.parametrize("module", MODULES)
def test_compiled_modules_avoid_what_mypyc_compiles_wrongly(module: str) -> None:
    assert list(mistakes((PACKAGE / f"{module}.py").read_text())) == []


def test_the_mistakes_are_found() -> None:
    source = """
class Example:
    source: object = None

    async def run(self) -> None:
        try:
            await self.work()
        except OSError:
            raise ValueError("no") from None
        finally:
            await self.close()
        try:
            await self.work()
        except OSError:
            await self.close()
        async with asyncio.timeout(1), self._lock:
            await self.work()
        async with asyncio.TaskGroup():
            await self.work()
"""
    lines = sorted(int(mistake.partition(":")[0].removeprefix("line ")) for mistake in mistakes(source))
    assert lines == [3, 6, 9, 12, 18]


VALUES = """
from dataclasses import dataclass, field
from dispatcher.contract.values import slots_dataclass


@slots_dataclass
class Value:
    number: int
    text: str | None = field(repr=False)
    \"\"\"What it says.\"\"\"
    share: float = field(default=0.5, repr=False)

    @property
    def half(self) -> float:
        return self.number / 2


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Frozen:
    name: str = "none"


@dataclass(slots=True, eq=False)
class Growing:
    found: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Checked:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(self.number)"""


def test_dataclasses_become_native_classes() -> None:
    native = with_native_values(VALUES).splitlines()
    assert len(native) == len(VALUES.splitlines())  # every line keeps its number
    assert [line for line in native if line.startswith("@")] == [
        "@dataclass(unsafe_hash=True, init=False)",
        "@dataclass(unsafe_hash=True, init=False)",
        "@dataclass(eq=False)",
        "@dataclass",
    ]
    assert [line.strip() for line in native if "def __init__" in line] == [
        "def __init__(self, number: int, text: str | None, share: float = 0.5) -> None: "
        "self.number = number; self.text = text; self.share = share",
        "def __init__(self, name: str = 'none') -> None: self.name = name",
    ]
    made: dict[str, Any] = {}
    exec(compile("from dataclasses import dataclass, field\n" + "\n".join(native), "native", "exec"), made)
    assert made["Value"](3, None) == made["Value"](3, None, 0.5) != made["Value"](3, "x")
    assert (made["Value"](3, None).half, made["Frozen"]().name, made["Growing"]().found) == (1.5, "none", [])
    assert hash(made["Frozen"]("x")) == hash(made["Frozen"]("x"))
    with pytest.raises(ValueError, match="-1"):
        made["Checked"](-1)


@pytest.mark.parametrize("module", MODULES)
def test_no_compiled_class_is_replaced_by_its_decorator(module: str) -> None:
    # Python 3.14 can't give slots to a class with a compiled property, and mypyc compiles no such class natively.
    native = with_native_values((PACKAGE / f"{module}.py").read_text())
    assert "slots=True" not in native
    assert "@slots_dataclass" not in native
    imports = [node for node in ast.walk(ast.parse(native)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    assert "slots_dataclass" not in names
    assert "dataclass" in names or "@dataclass" not in native


@pytest.mark.parametrize("value", ["1", "true", "True", "yes", "YES", "on", " 1 "])
def test_the_switch_turns_compiling_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DISPATCHER_COMPILE", value)
    assert _is_asked_for()


@pytest.mark.parametrize("value", [None, "", " ", "0", "false", "False", "no", "NO", "off"])
def test_the_switch_leaves_compiling_off(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("DISPATCHER_COMPILE", raising=False)
    if value is not None:
        monkeypatch.setenv("DISPATCHER_COMPILE", value)
    assert not _is_asked_for()


@pytest.mark.parametrize("value", ["2", "ture", "compiled", "-1", "none"])
def test_the_switch_refuses_any_other_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DISPATCHER_COMPILE", value)
    with pytest.raises(SystemExit, match=f"DISPATCHER_COMPILE is '{value}'.*1, true, yes, on.*0, false, no, off"):
        _is_asked_for()
