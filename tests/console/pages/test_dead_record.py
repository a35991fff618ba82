"""Operators open and download the record of a dead event; what is in it stays text."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from dispatcher.console.pages.dead_record import shown
from dispatcher.stores.sql.records import AuditAction, AuditQuery
from tests.console.pages.sample_world import UNREADABLE, dead_facts
from tests.console.pages.stage import Stage, staged


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path, is_empty=True) as running:
        running.dead_events.facts = dead_facts()
        yield running


async def test_an_unreadable_record_is_shown_downloaded_and_recorded(stage: Stage) -> None:
    dead_id = stage.dead_events.facts[0].id
    async with aiohttp.ClientSession(stage.base, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        await session.post("/sign-in", data={"token": await stage.token()})
        async with session.get("/dead-events?again=both") as answer:
            assert f'href="/dead-events/{dead_id}"' in await answer.text()
        async with session.get(f"/dead-events/{dead_id}") as answer:
            page = await answer.text()
        assert answer.status == 200
        assert "00000000  00 00 00 01 2a 4f 62 6a" in page
        assert "<script>alert" not in page
        assert "feedback-reason" in page
        async with session.get(f"/dead-events/{dead_id}/download") as answer:
            assert await answer.read() == UNREADABLE
            assert answer.headers["Content-Disposition"] == f'attachment; filename="dead-event-{dead_id}.bin"'
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.content_type == "application/octet-stream"
        async with session.get("/dead-events/9-9") as answer:
            assert answer.status == 404
    opened = await stage.services.audit.search(AuditQuery(action=AuditAction.OPEN), orgs=None)
    assert [one.changes for one in opened] == [{"dead_event": dead_id}] * 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", ""),
        (json.dumps({"a": "☂"}, ensure_ascii=False).encode(), '{"a": "☂"}'),
        ("☂".encode() * 3 + "☂".encode()[:2], "☂☂☂"),
        (b"line\r\n\tnext", "line\r\n\tnext"),
        (b"\x00ab", "00000000  00 61 62                                         .ab"),
        (b"\xff" * 17, f"00000000  {' '.join(['ff'] * 16)}  {'.' * 16}\n00000010  ff{' ' * 45}  ."),
        ("\u202e".encode(), "00000000  e2 80 ae                                         ..."),
    ],
)
def test_bytes_are_shown_as_text_only_if_they_are(value: bytes, text: str) -> None:
    assert shown(value) == text
