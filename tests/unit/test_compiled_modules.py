"""What mypyc compiles wrongly without a word must not be in a module that is compiled (docs/decisions/0008)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatch_build import MODULES

PACKAGE = Path(__file__).parents[2] / "dispatcher"
AWAITS = (ast.Await, ast.AsyncWith, ast.AsyncFor)


def mistakes(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Try):
            if any(isinstance(inner, AWAITS) for statement in node.finalbody for inner in ast.walk(statement)):
                yield f"line {node.lineno}: a `finally` that awaits leaves its exception behind in the thread"
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
"""
    assert [mistake.partition(":")[0] for mistake in mistakes(source)] == ["line 3", "line 6", "line 9"]
