"""A real Prometheus with the real rules, and questions to it."""

import json
import math
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import RULES, tool

PLACE = {"namespace": "messaging", "pod": "dispatcher-0"}
"""What the Prometheus operator would add to every sample."""


def get(url: str) -> tuple[int, str]:
    """Status and text; status 0 while nothing listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def answered(url: str, wanted: int = 200, within_s: float = 60) -> str:
    """The text, once the status is the wanted one."""
    end = time.monotonic() + within_s
    while True:
        status, text = get(url)
        if status == wanted:
            return text
        assert time.monotonic() < end, f"{url}: {status} {text[:300]}"
        time.sleep(0.1)


def free_port() -> int:
    """Returns a free port on 127.0.0.1."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def shortened(rules: str, factor: float) -> str:
    """The rules with every duration divided, but for rates, which need a few scrapes of a second each."""

    def divided(least_s: float) -> Callable[[re.Match[str]], str]:
        def write(found: re.Match[str]) -> str:
            seconds = int(found[2]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[3]]
            return f"{found[1]}{max(round(seconds / factor), least_s):g}s"

        return write

    rules = re.sub(r"(\[)(\d+)([smhd])(?=\])", divided(5), rules)
    rules = re.sub(r"(\boffset )(\d+)([smhd])\b", divided(5), rules)
    return re.sub(r"(for: )(\d+)([smhd])\b", divided(2), rules)


def scraping(
    target: str,
    directory: Path,
    *,
    alertmanager: str | None = None,
    at_once: bool = False,
    factor: float = 1,
    also: Sequence[str] = (),
) -> tuple[str, "subprocess.Popen[bytes]"]:
    """Start one that scrapes the target and evaluates every rule each second.

    Args:
        at_once: alerts don't wait their `for`.
        factor: all windows are shorter by it.
        also: further targets, each in a namespace of its own.
    """
    for path in RULES.glob("*.yaml"):
        left_out = "interval|for" if at_once else "interval"
        text = re.sub(rf"^ +(?:{left_out}): .*\n", "", path.read_text(), flags=re.MULTILINE)
        (directory / path.name).write_text(text if factor == 1 else shortened(text, factor))
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / path.name) for path in RULES.glob("*.yaml")],
        "scrape_configs": [
            {
                "job_name": "feedback-dispatcher",
                "static_configs": [
                    {"targets": [target], "labels": PLACE},
                    *({"targets": [one], "labels": PLACE | {"namespace": f"other-{one}"}} for one in also),
                ],
            }
        ],
    }
    if alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        tool("prometheus"),
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return f"http://127.0.0.1:{port}", process


def query(url: str, expr: str) -> list[Any]:
    """What an expression gives now; fails where Prometheus refuses it."""
    status, text = get(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
    assert status == 200, f"{expr}: {text}"
    result: list[Any] = json.loads(text)["data"]["result"]
    return result


def has_data(url: str, expr: str) -> bool:
    """Whether an expression gives at least one number; NaN is none."""
    return any(not math.isnan(float(one["value"][1])) for one in query(url, expr))


def broken_rules(url: str) -> dict[str, str]:
    """Rules that can't be evaluated, and why."""
    groups = json.loads(answered(f"{url}/api/v1/rules"))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 50
    return {rule["name"]: rule.get("lastError", rule["health"]) for rule in rules if rule["health"] != "ok"}
