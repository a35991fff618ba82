"""The table of Kafka's troubles says what the code, the alerts and the runbooks do."""

import re
from pathlib import Path

import yaml

from dispatcher.contract.kafka_problems import STOPS_READING, KafkaReason

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALERTS = ROOT / "deploy/helm/feedback-dispatcher/files/rules/alerts.yaml"
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (yes|no) \| (\w+) \| \[(\w+)\]\((runbooks/\w+\.md)\) \|$", re.MULTILINE)
ROWS = ROW.findall((DOCS / "kafka-problems.md").read_text())


def test_every_reason_has_exactly_one_row_and_there_are_no_others() -> None:
    assert [row[0] for row in ROWS] == [reason.value for reason in KafkaReason]


def test_the_table_says_what_readiness_does() -> None:
    said = {reason for reason, _, ready, *_ in ROWS if ready == "no"}
    assert said == {reason.value for reason in STOPS_READING}


def test_alerts_and_runbooks_of_the_table_exist() -> None:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    for _, _, _, alert, runbook, path in ROWS:
        assert alert in alerts
        assert path == f"runbooks/{runbook}.md"
        assert (DOCS / path).read_text().startswith(f"# {runbook}\n")


def test_runbooks_name_only_reasons_that_there_are() -> None:
    reasons = {reason.value for reason in KafkaReason}
    for name in ("DispatcherKafkaUnavailable", "DispatcherKafkaProblem"):
        text = (DOCS / "runbooks" / f"{name}.md").read_text()
        steps = re.findall(r"^\d+\. ((?:`\w+`(?:, )?)+):", text, re.MULTILINE)
        named = {reason for step in steps for reason in re.findall(r"`(\w+)`", step)}
        assert named
        assert named <= reasons
