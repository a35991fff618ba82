"""What the chart makes of each of its ci values, committed: a change of a template shows in the diff of what it makes.

python -m tests.deploy.rendered      writes tests/deploy/rendered/
"""

from pathlib import Path
from typing import Any

import yaml

from tests.deploy.rendering import NAMES, Object, objects

OUT = Path(__file__).parent / "rendered"
USUAL = {
    "helm.sh/chart",
    *(f"app.kubernetes.io/{key}" for key in ("name", "instance", "version", "managed-by", "part-of")),
}
"""Labels of every object; another test looks at them."""
LONG = 4000
"""Texts longer than this are dashboards, which lie in the chart as they are."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _shortened(value: Any) -> Any:
    """Without what changes with every version, what all objects have, and what another file has word for word."""
    match value:
        case dict():
            if "helm.sh/chart" in value or value.get("app.kubernetes.io/part-of"):
                value = {key: one for key, one in value.items() if key not in USUAL}
            return {key: "…" if key == "checksum/settings" else _shortened(one) for key, one in value.items()}
        case list():
            return [_shortened(one) for one in value]
        case str() if len(value) > LONG:
            return "…"
        case _:
            return value


def _shown(name: str) -> list[Object]:
    """The objects, for every name but `minimal` without those that are just as in `minimal`."""
    made = [one for one in objects(name) if name == "minimal" or one not in objects("minimal")]
    for one in made:
        if one["kind"] == "PrometheusRule":
            one["spec"]["groups"] = [group["name"] for group in one["spec"]["groups"]]
    return [_shortened(one) for one in made]


def path(name: str) -> Path:
    """Where it is kept."""
    return OUT / f"{name}.yaml"


def text(name: str) -> str:
    """What should be kept."""
    return yaml.dump_all(_shown(name), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def main() -> None:
    """Write them all."""
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    for name in NAMES:
        path(name).write_text(text(name))


if __name__ == "__main__":
    main()
