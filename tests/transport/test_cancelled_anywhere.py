"""A request that is cancelled leaves no connection behind, at whichever await that happens."""

import os

import pytest

from tests.cancelling import cancelled_everywhere, eventually
from tests.transport.conftest import Opener, Serving, post_to
from tests.transport.servers import ConnectProxy, answering
from tests.transport.servers import Endpoint as Server

CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("is_tunnelled", [False, True], ids=["direct", "proxy"])
async def test_a_request_leaves_no_connection(opening: Opener, serving: Serving, is_tunnelled: bool) -> None:
    async with Server(ConnectProxy(), None).running() as proxy, serving(answering(CLOSING)) as server:
        through = {"proxy": f"http://127.0.0.1:{proxy.port}"} if is_tunnelled else {}
        async with opening(**through) as transport:
            url = f"https://127.0.0.1:{server.port}/"
            assert (await transport.post(post_to(url))).status == 200
            before = 0
            async with eventually() as is_true:  # what the first request needed once is made
                while not await is_true(before == len(os.listdir("/proc/self/fd"))):
                    before = len(os.listdir("/proc/self/fd"))

            async def post() -> None:
                assert (await transport.post(post_to(url))).status == 200

            async def nothing_is_left() -> None:
                async with eventually() as is_true:
                    while not await is_true(len(os.listdir("/proc/self/fd")) <= before):
                        pass

            assert await cancelled_everywhere(post, nothing_is_left) >= 3
