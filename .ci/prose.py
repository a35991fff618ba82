"""Checks the project's language: words that STYLE excludes in prose, and old names in definitions.

Usage: python .ci/prose.py [FILE...]   (all tracked files if none is given)

Prose is every docstring, comment, long string and test name of a Python file, the texts of dashboards, and the text of
Markdown, HTML, YAML, TOML, shell and make files. A phrase is found across line breaks, too. Prints one line for each
finding and exits with status 1 if there is any.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".html", ".yaml", ".yml", ".sh", ".tpl", ".txt", ".toml"}
NAMES = {"Dockerfile", "Makefile"}
DASHBOARDS = "deploy/helm/feedback-dispatcher/files/dashboards/"
LEFT_OUT = (
    "tests/console/pages/vendor/",
    "tests/deploy/rendered/",
    "requirements/",
    "config/schema/",
    ".ci/prose.py",
    "tests/unit/test_language.py",
    "LICENSE",
)

WORDS = {
    r"where there (?:is|are|was|were|be)\b": "if there is",
    r"where (?:one|none|it|they|this|that|he|nothing|something|the \w+) "
    r"(?:is|are|was|were|has|have|can|can't|does|doesn't|may|must|needs?|wants?|gives?)\b"
    r"(?! (?:mounted|stored|kept|found|written|read from|defined|documented))": "conditional where: use if or when",
    r"(?:None|True|False|null|empty|absent|unset) where\b": "None if",
    r"\bwhere not given\b": "if not given",
    r"\b(?:whoever|whomever|whosoever)\b": "name the actor",
    r"\b(?:somebody|anybody|someone|anyone)\b": "name the actor",
    r"\bnobody\b": "name the actor, or no one",
    r"\bwho (?:asks?|waits?|comes?|reads?|wants?|is no|is told|may)\b": "name the actor",
    r"\b(?:tells?|told)\b(?! (?:apart|them apart))": "reports, returns, shows, says",
    r"\bbears?\b": "handles, carries",
    r"\bsees? to\b": "handles, processes",
    r"\bstands? (?:in the way|against|for nothing)\b": "prevents, contradicts",
    r"\b(?:becomes?|became|becoming) of\b": "happens to",
    r"\bbe had\b": "is available",
    r"\bnone of (?:the|a|its) \w+'s business\b": "does not concern",
    r"\bis given back\b": "returns",
    r"\bbe they none\b": "even none",
    r"\bfor that matter\b": "delete",
    r"\bso (?:long|many|much|few)\b(?! as\b|[^.;:]{0,60}\bthat\b)": "this long, this number of",
    r"(?<!there )\b(?:is|are|was|were) no (?!(?:longer|more|less|fewer|later|higher|larger)\b)\w": "isn't a",
    r"\banew\b": "again",
    r"\b(?:says?|said|known|knows?|learns?|learnt|hears?|heard) of\b": "says about, notices, is notified of",
    r"\blooks? whether\b": "checks whether",
    r"^[A-Z][a-z]+s (?:to )?nothing yet\b": "Prepares …",
    r"\b(?:thereof|therein|thereupon|whereupon|hereby|herein)\b": "say it plainly",
    r"\bsuch as it is\b": "delete",
    r"\bthe (?:full|short|long) way\b": "slow path, fast path",
    r"\bwhere (?:no|every|each|all|an?|its|their|our|your|these|those|there|nothing|such)\b": "use if or when",
    r"(?:^|[;:,] )gives\b": "returns",
    r"\bgives? (?:back|how many|the (?:exit|new))\b": "returns",
    r"\bstands?\b(?! (?:for|in for|alone|still|up|out|by)\b|-)": "is, is written",
    r"\bbe asked\b|\bis asked\b|\bare asked\b": "the client requests, the store is queried",
    r"\b(?:mend|mends|mended|mending)\b": "fix, repair",
    r"\bwhat (?:was|is) (?:meant|learnt)\b": "say it plainly",
}
OLD_NAMES = frozenset(
    {
        "Express",
        "Shortcut",
        "Ends",
        "Flight",
        "Parcel",
        "Tried",
        "NotNow",
        "Never",
        "Changed",
        "Deliveries",
        "Turn",
        "Claim",
        "Work",
        "Journey",
        "Budget",
        "Lanes",
        "Slot",
        "Slots",
        "Evidence",
        "MISSING",
        "Missing",
        "told",
        "Spread",
        "fast_value",
        "Failed",
        "Bell",
        "take_apart",
        "put_together",
        "Follower",
        "Keeper",
        "Parts",
        "Refusal",
        "Standing",
        "Given",
        "Taken",
        "Nothing",
        "bury",
        "meet",
        "peek",
        "full_way",
        "landed",
        "diverted",
        "depart",
        "_is_hindered",
        "_is_let",
        "_may_send",
        "mend",
        "find_cached",
        "dead_fact",
        "lane_fact",
        "AttemptFact",
        "DeadFact",
        "LaneFact",
        "TokenPosts",
        "AGAIN_SOON",
        "AGAIN_LATER",
        "SUSPEND",
    }
)
OLD_MODULES = frozenset(
    {
        "answers", "asking", "burying", "closed_connections", "committed", "configuring", "dead_memory", "decisions",
        "deeds", "doors", "explaining", "facts", "fast_value", "following", "frame", "inventory", "lean", "making",
        "parts", "personal", "race", "reading", "redriving", "running", "sample_sends", "scenery", "series", "shelves",
        "signing_in", "site", "stand_ins", "standing", "take_apart", "throttle", "token_posts", "waiting", "wire",
        "wording",
    }
)  # fmt: skip
"""Names of modules of the product that were replaced."""
NO_VERBS = frozenset(
    {
        "Addresses", "Bytes", "Columns", "Entries", "Events", "Indexes", "Links", "Messages", "Milliseconds",
        "Names", "Rows", "Seconds", "Settings", "This", "Topics", "Values", "Words",
    }
)  # fmt: skip
"""First words of docstrings that end like a verb and are none."""
MOST_WHERE = 0.6
"""Uses of "where" per 1,000 words of the product's docstrings and comments: what the model codebases have at most."""
_QUOTES = re.compile(r"""^(?:#+:?|[a-zA-Z]{0,2}(?:"{3}|'{3}|["']))|(?:"{3}|'{3}|["'])$""")
_PATTERNS = [(re.compile(pattern, re.IGNORECASE), better) for pattern, better in WORDS.items()]


def prose_of(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yields (number of the first line, text) of each paragraph, docstring, comment or string that people read."""
    if path.suffix == ".py":
        yield from _prose_of_python(text)
    elif path.suffix == ".json":
        for number, line in enumerate(text.splitlines(), 1):
            if found := re.match(r'\s*"(?:title|description)": "(.*)"', line):
                yield number, found[1]
    else:
        number = 1
        for paragraph in re.split(r"(\n\s*\n)", text):
            yield number, re.sub(r"(?m)^[ \t]*(?:#+|>)", "", paragraph)
            number += paragraph.count("\n")


def _prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Yields comments and strings. Comments on consecutive lines, and adjacent strings, are one text."""
    block, first, kind, depth = "", 0, "", 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        depth += (name == "FSTRING_START") - (name == "FSTRING_END")  # Python 3.12 takes f-strings apart
        found = {"COMMENT": "comment", "STRING": "string", "FSTRING_MIDDLE": "string"}.get(name, "")
        if not found and (depth or name in ("NL", "FSTRING_END")):
            continue
        line = token.start[0]
        if found != kind or (found == "comment" and line > first + block.count("\n") + 1):
            if kind == "comment" or " " in block:
                yield first, block
            block, first, kind = "", line, found
        if found:
            block += "\n" * (line - first - block.count("\n")) + _QUOTES.sub("", token.string)


def flat(text: str) -> tuple[str, list[int]]:
    """Returns the text in one line, and the position at which each of its lines begins there."""
    lines = [line.strip() for line in text.split("\n")]
    return " ".join(lines), list(accumulate((len(line) + 1 for line in lines), initial=0))


def names_of_tests(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, words) of the name of the file and of each of its tests."""
    yield 1, path.stem.replace("_", " ")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.removeprefix("test_").replace("_", " ")


def old_definitions(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, name) of every class, function and constant with a name that was replaced."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        yield from ((node.lineno, name) for name in names if name in OLD_NAMES)


def verbless_docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line number, first words) of functions whose docstring doesn't begin with what they do: "Returns …".

    Of a class, the docstring must not begin with "What".
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and (ast.get_docstring(node) or "").startswith("What "):
            yield node.lineno, "What"
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        words = (ast.get_docstring(node) or "").split()
        is_property = any("property" in ast.unparse(one) for one in node.decorator_list)
        if not words or is_property or "typer" in ast.unparse(node):  # a command's docstring is its help
            continue
        if node.name == "__init__" and words[0].startswith("`"):
            continue
        if words[0] != "Called" and (words[0] in NO_VERBS or not re.fullmatch(r"[A-Z][A-Za-z-]+s,?", words[0])):
            yield node.lineno, " ".join(words[:5])


def findings(path: Path) -> Iterator[str]:
    """Yields a line for each place of the file that should be worded or named differently."""
    text, shown = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    blocks = list(prose_of(path, text))
    if path.suffix == ".py" and shown.parts[0] == "tests":
        blocks += names_of_tests(path, text)
    for number, block in blocks:
        line, starts = flat(block)
        for pattern, better in _PATTERNS:
            for found in pattern.finditer(line):
                yield f"{shown}:{number + bisect_right(starts, found.start()) - 1}: «{found[0]}»: {better}"
    if path.suffix == ".py":
        yield from (f"{shown}:{number}: {name}: an old name" for number, name in old_definitions(text))
    if path.suffix == ".py" and path.is_relative_to(ROOT / "dispatcher"):
        if path.stem in OLD_MODULES:
            yield f"{shown}: an old name of a module"
        yield from (
            f"{shown}:{number}: «{words} …»: begin with what the function does: Returns, Raises, Writes …"
            for number, words in verbless_docstrings(text)
        )


def density_of_where(paths: Iterable[Path]) -> float:
    """Returns how often "where" occurs per 1,000 words of the docstrings and comments below `dispatcher/`."""
    own = [path for path in paths if path.suffix == ".py" and path.is_relative_to(ROOT / "dispatcher")]
    texts = [text for path in own for _, text in prose_of(path, path.read_text(encoding="utf-8"))]
    words = [word.strip("\"'.,;:()`").lower() for text in texts for word in text.split()]
    return 1000 * words.count("where") / max(1, len(words))


def tracked() -> list[Path]:
    """Returns the tracked files that hold prose."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = [name for name in names if Path(name).suffix in SUFFIXES or Path(name).name in NAMES]
    return [ROOT / name for name in names if name.startswith(DASHBOARDS)] + [
        ROOT / name for name in wanted if not name.startswith(LEFT_OUT)
    ]


def main() -> int:
    """Prints the findings. Returns the exit status."""
    paths = [Path(argument).resolve() for argument in sys.argv[1:]] or tracked()
    found = [line for path in paths if path.exists() for line in findings(path)]
    if not sys.argv[1:] and (density := density_of_where(paths)) > MOST_WHERE:
        found.append(f"dispatcher: {density:.1f} times «where» per 1,000 words, at most {MOST_WHERE}: use if or when")
    print("\n".join(found) or "language: nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
