"""Reads what a running dispatcher reports about Kafka: `/readyz`, metrics, log."""

import json
import re
from typing import Any

from tests.integration.harness import Dispatcher, until


async def readiness(dispatcher: Dispatcher) -> tuple[int, dict[str, Any]]:
    """Status and checks of `/readyz`; 0 and nothing while the process doesn't listen."""
    status, text = await dispatcher.get("/readyz")
    return status, json.loads(text)["checks"] if text else {}


async def kafka_reasons(dispatcher: Dispatcher) -> dict[str, str]:
    """Returns the detail of every Kafka problem in `/readyz` by reason."""
    _, checks = await readiness(dispatcher)
    prefix = "kafka: "
    return {name.removeprefix(prefix): one.get("reason", "") for name, one in checks.items() if name.startswith(prefix)}


async def metric(dispatcher: Dispatcher, series: str) -> float | None:
    """Returns a sample's value; None if there is no such series."""
    _, text = await dispatcher.get("/metrics")
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found.group(1))


async def reports(
    dispatcher: Dispatcher, reason: str, detail: str, *, ready: bool = False, timeout_s: float = 60
) -> None:
    """Returns when `/readyz`, the metric and the log name the problem."""

    async def named() -> bool:
        status, _ = await readiness(dispatcher)
        return detail in (await kafka_reasons(dispatcher)).get(reason, "") and (status == 200) is ready

    await until(named, f"{reason} in /readyz: {detail}", timeout_s, dispatcher)

    async def counted() -> bool:
        value = await metric(dispatcher, f'dispatcher_kafka_problem{{reason="{reason}"}}')
        return value == 1 and (ready or await metric(dispatcher, "dispatcher_kafka_available") == 0)

    await until(counted, f"{reason} in the metrics", timeout_s, dispatcher)
    assert any(
        line.get("event") == "kafka problem" and line.get("reason") == reason and detail in line["detail"]
        for line in log_lines(dispatcher)
    ), dispatcher.log[-4000:]


async def holds(dispatcher: Dispatcher, count: int) -> None:
    """Returns when the process counts this number of held events."""

    async def are_held() -> bool:
        return await metric(dispatcher, "dispatcher_held_events") == count

    await until(are_held, f"{count} held events", 60, dispatcher)


async def reports_nothing(dispatcher: Dispatcher, timeout_s: float) -> None:
    """Returns when the process is ready and names no problem of Kafka."""

    async def silent() -> bool:
        status, _ = await readiness(dispatcher)
        return status == 200 and not await kafka_reasons(dispatcher)

    await until(silent, "no kafka problem in /readyz", timeout_s, dispatcher)


def log_lines(dispatcher: Dispatcher) -> list[dict[str, Any]]:
    """Returns every JSON line of the present run's log."""
    return [json.loads(line) for line in dispatcher.log.splitlines() if line.startswith("{")]
