"""Both HTTP clients work on uvloop, which the product runs on; the other tests of this folder run on asyncio's loop."""

import asyncio
from pathlib import Path

import pytest
import uvloop

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.demo.receiver import DemoEndpoint, Receiver
from dispatcher.transport import open_transport
from dispatcher.transport.tls_sessions import DIALLED, TLSSessions
from tests.transport.conftest import post_to


@pytest.mark.parametrize("client", ["lean", "aiohttp"])
def test_requests_succeed_and_the_next_connection_offers_the_session_of_host_and_port(
    client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[tuple[tuple[str, int], bool]] = []
    get = TLSSessions.get

    def noted(self: TLSSessions, place: tuple[str, int]) -> object:
        offered.append((place, get(self, place) is not None))
        return get(self, place)

    monkeypatch.setattr(TLSSessions, "get", noted)
    with Receiver({"luma": DemoEndpoint()}) as receiver:
        (tmp_path / "ca.pem").write_bytes(receiver.ca_pem)

        async def sent() -> list[int | None]:
            egress = EgressSettings.model_validate({"allow": ("127.0.0.0/8",), "ca_bundle": tmp_path / "ca.pem"})
            async with open_transport(DeliverySettings(transport=client), egress) as transport:
                request = post_to(receiver.url("luma"))
                first = [(await transport.post(request)).status for _ in range(2)]
                at_once = await asyncio.gather(*(transport.post(request) for _ in range(3)))
                return [*first, *(attempt.status for attempt in at_once)]

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            statuses = runner.run(sent())
    assert statuses == [200] * 5
    assert {place for place, _ in offered} == {("127.0.0.1", receiver.port)}
    assert offered[0][1] is False
    assert offered[-1][1] is True
    assert DIALLED.get(None) is None
