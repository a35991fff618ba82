"""The check of the project's language (`.ci/prose.py`, part of `make lint`) finds what it is for."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "prose.py"


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prose", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "definition",
    [
        "class Flight: ...",
        "def bury(): ...",
        "async def meet(): ...",
        "MISSING = object()",
        "class A:\n    def peek(self): ...",
    ],
)
def test_a_definition_with_an_old_name_is_found(prose: ModuleType, definition: str) -> None:
    assert [name for _, name in prose.old_definitions(definition)]
    assert not list(prose.old_definitions("class FastPath: ...\nNOT_CACHED = object()\ndef dead_letter(): ..."))


@pytest.mark.parametrize(
    "first_line", ["The state of a record.", "Whether it may begin.", "Return it.", "Seconds until then."]
)
def test_a_docstring_that_does_not_begin_with_what_the_function_does_is_found(
    prose: ModuleType, first_line: str
) -> None:
    function = 'def f():\n    """{}"""'
    assert list(prose.verbless_docstrings(function.format(first_line)))
    assert not list(prose.verbless_docstrings(function.format("Returns the state of a record.")))
    assert not list(
        prose.verbless_docstrings("class A:\n    @property\n    " + function.format(first_line).replace("\n", "\n    "))
    )


@pytest.mark.parametrize(
    "sentence", ["None where there is one.", "Whoever asks is told.", "What stands in the way.", "It sees to a record."]
)
def test_words_that_the_style_excludes_are_found_in_docstrings_and_comments(
    prose: ModuleType, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    for name, text in {"a.py": f'"""{sentence}"""\n', "b.py": f"# {sentence}\n", "c.md": f"{sentence}\n"}.items():
        (tmp_path / name).write_text(text)
        assert list(prose.findings(tmp_path / name))
