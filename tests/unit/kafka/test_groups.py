"""Every group that a process joins is among the permissions that are printed, and among the names that are checked."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from dispatcher.config.secrets import Secret
from dispatcher.config.settings import Settings
from dispatcher.contract.kafka_problems import STOPS_READING, KafkaReason
from dispatcher.kafka import groups
from dispatcher.kafka.check import group_needs, topic_needs
from dispatcher.kafka.probe import AclOperation, Findings
from dispatcher.kafka.topic_permissions import permissions

SOURCES = Path(groups.__file__).parents[1]
STORED = {"url": Secret(b"sqlite+aiosqlite:////tmp/history.db")}
GROUPS = {"g", "g.retry", "g.held"}


def settings(history: dict[str, Any]) -> Settings:
    kafka = {"bootstrap_servers": "k:9092", "group_id": "g", "topic_prefix": "p"}
    document = {"apiVersion": "dispatcher/v1", "kafka": kafka, "webhooks": {"path": "/x"}, "history": history}
    return Settings.model_validate(document)


@pytest.mark.parametrize(
    ("history", "expected"),
    [(STORED, {*GROUPS, "g.history"}), ({"store": "none"}, GROUPS), (STORED | {"store": "none"}, GROUPS), ({}, GROUPS)],
)
def test_the_historys_group_is_permitted_and_checked_if_there_is_a_store(
    history: dict[str, Any], expected: set[str]
) -> None:
    chosen = settings(history)
    permitted = {one.name: one.operations for one in permissions(chosen) if one.resource == "group"}
    assert permitted == dict.fromkeys(expected, ("Read", "Describe"))
    assert {need.name for need in group_needs(chosen)} == expected


def test_every_name_of_a_group_is_permitted() -> None:
    """Modules take the names from `groups`; those that have a name of their own would not be found here."""
    made = {
        function("g")
        for _, function in inspect.getmembers(groups, inspect.isfunction)
        if function.__annotations__ == {"group_id": str, "return": str}
    }
    assert made | {"g"} == set(groups.group_names(settings(STORED)))
    own = re.compile(r"group_id\}\.|group_id \+")
    assert [path.name for path in SOURCES.rglob("*.py") if own.search(path.read_text())] == ["groups.py"]


def test_every_topic_that_is_read_is_checked_for_reading() -> None:
    chosen = settings(STORED)
    permitted = {one.name: one.operations for one in permissions(chosen) if one.resource == "topic"}
    read = {need.name for need in topic_needs(chosen) if AclOperation.READ in need.operations}
    assert read == permitted.keys() - {"p.dead"}, "dead letters are read by the console and redrives only"
    (written,) = [need for need in topic_needs(settings({"store": "none"})) if need.name == "p.history"]
    assert written.operations == (AclOperation.WRITE,)


def test_a_fault_of_the_history_does_not_stop_deliveries() -> None:
    chosen = settings(STORED)
    assert [need.name for need in topic_needs(chosen) if not need.is_required] == ["p.history"]
    assert [need.name for need in group_needs(chosen) if not need.is_required] == ["g.history"]
    found = Findings()
    for reason in KafkaReason:
        found.add(reason, "g.history", is_required=False)
    assert not STOPS_READING & found.problems.keys()
    found.add(KafkaReason.PERMISSION_MISSING, "g")
    assert found.problems[KafkaReason.PERMISSION_MISSING] == ["g"]
