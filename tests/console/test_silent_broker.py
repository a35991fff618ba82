"""Kafka takes connections and answers nothing: the console waits for seconds, and says what is true."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.console.pages import event_explanation
from dispatcher.contract.records import Origin
from dispatcher.errors import BrokerUnavailable, NotFound, StoreUnavailable
from tests.console.pages.sample_world import CONTOSO, LUMA
from tests.console.pages.stage import Stage, staged
from tests.console.pages.test_filters_that_say import read
from tests.console.pages.test_kept_form import browser


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as running:
        yield running


async def test_a_record_is_not_awaited_for_longer_than_a_person_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    monkeypatch.setattr(event_explanation, "CHECK_S", 0.1)
    async with server:
        with pytest.raises(BrokerUnavailable):
            await event_explanation.record_at(KafkaSettings(bootstrap_servers=address), Origin("events", 0, 1))
        held.set()


async def test_pages_do_not_say_that_deliveries_go_on_or_that_an_event_is_gone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise BrokerUnavailable("kafka at kafka.internal:9092 does not answer")

    monkeypatch.setattr(stage.dead_events, "record", away)
    monkeypatch.setattr(event_explanation, "record_at", away)
    async with browser(stage, await stage.token()) as session:
        dead = next(one for one in stage.dead_events.facts if one.tenant == CONTOSO)
        status, page = await read(session, f"/dead-events/{dead.id}")
        assert (status, "Kafka does not answer right now" in page, "go on" in page) == (503, True, False)
        explained = stage.path(CONTOSO, f"/deliveries/{dead.event_id}?explain=1")
        _, page = await read(session, explained)
        assert ("can't be read right now" in page, "be read any more" in page, "internal" in page) == (
            True,
            False,
            False,
        )

        async def gone(*_: object, **__: object) -> None:
            raise NotFound("the topic has no such offset")

        monkeypatch.setattr(event_explanation, "record_at", gone)
        assert "can't be read any more" in (await read(session, explained))[1]

        async def database_away(*_: object, **__: object) -> None:
            raise StoreUnavailable("PostgreSQL at db.internal")

        monkeypatch.setattr(stage.services.webhooks, "get", database_away)
        status, page = await read(session, stage.path(LUMA))
        assert (status, "Deliveries go on with the webhooks that the dispatchers know" in page) == (503, True)
