"""A topic that refuses writes for a while, for any reason: nothing is lost, the topic is named, parking goes on after."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests.field.readiness import reports, reports_nothing
from tests.integration.brokers import needs_kafka
from tests.integration.harness import LARGEST_RECORD, Stage, status, tenants, until
from tests.kafka import topics

pytestmark = [needs_kafka, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class RefusingConfig:
    """A topic configuration under which the broker refuses every parked record."""

    name: str
    config: Mapping[str, str]
    error: str
    """In the detail of the problem."""

    def __str__(self) -> str:
        return self.name


CONFIGS = (
    RefusingConfig("compacted, and the records have no key", {"cleanup.policy": "compact"}, "InvalidRecord"),
    RefusingConfig(
        "timestamps are always too old", {"message.timestamp.before.max.ms": "0"}, "refused the time of a record"
    ),
)


async def _configure(scene: Stage, topic: str, config: Mapping[str, str]) -> None:
    changed = {"max.message.bytes": str(LARGEST_RECORD), **config}  # the request replaces all of the topic's own
    await topics.set_config(scene.bootstrap_servers, topic, changed)


@pytest.mark.all_faults
async def test_a_tier_that_refuses_every_write_is_named_and_loses_nothing(scene: Stage) -> None:
    """One after the other, while the same process runs. Tenants whose endpoints accept notice nothing."""
    failing, fine = tenants(2)
    scene.mount([scene.webhook(failing), scene.webhook(fine)])
    tier = scene.tier_topics[0]
    async with scene.dispatcher(retry={"soon_attempts": 0}) as dispatcher:
        dispatcher.start()
        await dispatcher.ready()
        for number, case in enumerate(CONFIGS):
            scene.receiver.behave(f"/{failing.org}", status(503))
            await _configure(scene, tier, case.config)
            await scene.produce([failing, fine], 8, f"c{number}")
            await until(
                lambda: {scene.expected[name] for name in scene.missing()} == {failing}, "the others", 40, dispatcher
            )
            await reports(dispatcher, "write_refused", f"topic {tier}", ready=True)
            await reports(dispatcher, "write_refused", case.error, ready=True)
            if "time of a record" in case.error:
                await reports(dispatcher, "clock", f"topic {tier}: the broker refused the time of a record", ready=True)
            assert await scene.dead() == {}, case
            await _configure(scene, tier, {})
            scene.receiver.behave(f"/{failing.org}", None)
            await scene.all_accepted(dispatcher)
        await reports_nothing(dispatcher, 90)
        assert dispatcher.log.count('"level":"error"') == 0
    assert await scene.lost() == 0
