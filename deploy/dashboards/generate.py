"""Writes the Grafana dashboards: `python -m deploy.dashboards.generate`. A test keeps the JSON current."""

import json
from pathlib import Path

from deploy.dashboards.overview import OVERVIEW
from deploy.dashboards.tenant import TENANT_STORY

OUT = Path(__file__).parents[1] / "helm" / "feedback-dispatcher" / "files" / "dashboards"
DASHBOARDS = {"overview.json": OVERVIEW, "tenant.json": TENANT_STORY}


def generated() -> dict[Path, str]:
    """Returns every file and its content."""
    return {
        OUT / name: json.dumps(dashboard.as_json(), indent=1, ensure_ascii=False) + "\n"
        for name, dashboard in DASHBOARDS.items()
    }


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for path, text in generated().items():
        path.write_text(text)
