"""The programs that the dispatcher is compared with do its job: what they send equals what it sends."""

import asyncio
import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from aiokafka import AIOKafkaProducer

from benchmarks import programs
from benchmarks.suite import against_programs
from benchmarks.throughput import Rate
from dispatcher.contract.events import DeliveryEvent, read_event
from dispatcher.contract.feedback import encode_feedback
from dispatcher.demo.child_process import ChildProcess
from tests.conftest import Broker
from tests.integration.harness import Receiver
from tests.kafka import topics
from tests.unit.examples import EMAIL_EVENT, ORIGIN, SMS_EVENT, record

Json = dict[str, Any]
WITH_A_DOT = "9E1005A551ED61CA@AdobeOrg.example~1"


def changed(event: Json, number: int, *, org: str = "myImsOrg", management: Mapping[str, Json] | None = None) -> Json:
    """Returns a copy of the event with an id of its own, and with changes to the parts of its message."""
    made = copy.deepcopy(event)
    made["header"]["imsOrgId"] = org
    entity = made["body"]["xdmEntity"]
    entity["_id"] = f"event-{number}"
    for name, changes in (management or {}).items():
        entity["_experience"]["customerJourneyManagement"][name] |= changes
    return made


def events() -> list[Json]:
    """Returns events that differ in each field of the payload, in the spelling that all programs read."""
    channel = {"channel": {"_id": "https://ns.adobe.com/xdm/channels/Push/"}}
    opaque = {"offers": [{"id": 12345678901234567890}], "messageExclusion": {"reason": None}, "messageFailure": None}
    made = [
        changed(EMAIL_EVENT, 0),
        changed(SMS_EVENT, 1),
        changed(EMAIL_EVENT, 2, management={"messageProfile": channel, "messageDeliveryfeedback": opaque}),
        changed(
            EMAIL_EVENT, 3, org=WITH_A_DOT, management={"messageDeliveryfeedback": {"messageFailure": {"code": 7}}}
        ),
        changed(EMAIL_EVENT, 4),
    ]
    identities = {"Email": [{"id": "a@b.example", "primary": False, "authenticatedState": "ambiguous"}], "ECID": []}
    made[4]["body"]["xdmEntity"]["identityMap"] = identities
    return made


def payload(event: Json) -> Json:
    """Returns what the dispatcher sends for the event."""
    read = read_event(record(event), ORIGIN)
    assert isinstance(read, DeliveryEvent)
    found: Json = json.loads(encode_feedback(read, 1))
    return found


async def committed(kafka: Broker, group: str) -> int:
    """Returns how many records the group has acknowledged."""
    return sum(one.offset for one in (await topics.committed(kafka.bootstrap_servers, group)).values())


@pytest.mark.all_faults  # the first build takes up to two minutes
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", programs.EVENTS)
async def test_a_program_sends_what_the_dispatcher_sends(name: str, kafka: Broker, tmp_path: Path) -> None:
    try:
        program = await asyncio.to_thread(programs.build, name, tmp_path)
    except programs.CannotBuildError as missing:
        pytest.skip(str(missing))
    topic = f"reference-{name}"
    await topics.create_topic(kafka.bootstrap_servers, topic)
    sent = events()
    async with Receiver() as receiver, AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        ca = tmp_path / "ca.pem"
        receiver.authority.cert_pem.write_to_path(str(ca))
        headers = {"X-Environment": "prod", "Authorization": "Bearer of-one"}
        webhooks = {
            "myImsOrg/prod": {"url": receiver.url("/one"), "headers": headers},
            f"{WITH_A_DOT}/prod": {"url": receiver.url("/two?of=query")},
        }
        for event in [*sent[:2], changed(EMAIL_EVENT, 9, org="without a webhook"), *sent[2:]]:
            await producer.send_and_wait(topic, orjson.dumps(event))
        command = programs.command(program, kafka.bootstrap_servers, topic, webhooks, ca)
        child = ChildProcess(command, log=tmp_path / "log")
        child.start()
        try:
            async with asyncio.timeout(60):
                while len(receiver.accepted) < len(sent):
                    assert child.running, child.log_tail()
                    await asyncio.sleep(0.05)
                while await committed(kafka, f"{name}-{topic}") < len(sent) + 1:
                    await asyncio.sleep(0.05)
        finally:
            await child.stop(timeout_s=5)
    came = {one.headers["webhook-id"]: one for one in receiver.requests}
    assert {key: json.loads(one.body) for key, one in came.items()} == {
        event["body"]["xdmEntity"]["_id"]: payload(event) for event in sent
    }
    assert len(receiver.requests) == len(sent)
    for one in receiver.requests:
        given = {} if one.path == "/two" else headers
        assert one.headers["content-type"] == "application/json"
        assert {key: one.headers.get(key) for key in headers} == {key: given.get(key) for key in headers}
        assert not [key for key in one.headers if ":" in key or key.lower() == "url"]
    assert {one.path for one in receiver.requests} == {"/one", "/two"}


def test_a_program_that_can_not_be_built_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(programs.CannotBuildError, match="there is no Go"):
        programs.build("benthos", tmp_path)
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\n[ $1 = mod ] && echo no network >&2; exit 1\n")
    go.chmod(0o755)
    with pytest.raises(programs.CannotBuildError, match="modules can't be downloaded: no network"):
        programs.build("benthos", tmp_path)
    go.write_text("#!/bin/sh\n[ $1 = mod ] || { echo undefined: x >&2; exit 1; }\n")
    with pytest.raises(RuntimeError, match=r"benthos can't be built:\nundefined: x"):
        programs.build("benthos", tmp_path)


@pytest.mark.parametrize("name", programs.EVENTS)
def test_a_program_pins_its_modules(name: str) -> None:
    folder = programs.FOLDER / name
    sums = (folder / "go.sum").read_text()
    required = re.findall(r"^(?:require )?\t?(\S+\.\S+/\S+ v\S+)", (folder / "go.mod").read_text(), re.MULTILINE)
    assert required
    assert [one for one in required if f"{one}/go.mod " not in sums] == []


def test_the_mapping_for_benthos_has_every_field_of_the_payload() -> None:
    pipeline = yaml.safe_load((programs.FOLDER / "benthos" / "config.yaml").read_text())["pipeline"]
    names = set(re.findall(r'"(\w+)":', pipeline["processors"][0]["mapping"]))
    assert fields(payload(changed(EMAIL_EVENT, 0))) - {"email"} <= names


def fields(of: object) -> set[str]:
    """Returns the names in a payload, nested ones too."""
    if isinstance(of, list):
        return set().union(*map(fields, of))
    return set(of) | fields(list(of.values())) if isinstance(of, dict) else set()


def test_a_ratio_is_of_the_same_number_of_tenants() -> None:
    def rates(one: float, of_200: float, name: str) -> dict[str, list[Rate]]:
        return {name: [Rate(one, 1.0, 0.0)], f"{name}, 200 tenants": [Rate(of_200, 1.0, 0.0)]}

    taken = rates(20_000, 18_000, "dispatcher") | rates(8_000, 6_000, "Benthos")
    assert against_programs(taken) == {"end_to_end_vs_benthos": 2.5, "end_to_end_vs_benthos_200_tenants": 3.0}
