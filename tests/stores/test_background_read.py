"""Reading in a thread: a large file stops neither the loop nor the garbage collector for good."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from dispatcher.stores.background_read import BackgroundRead

Collections = list[int]


@pytest.fixture
def older_collections() -> Iterator[Collections]:
    """Collects the generations above 0 that the collector visits; the thresholds make it visit them often."""
    seen: Collections = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] > 0:
            seen.append(info["generation"])

    before = gc.get_threshold()
    gc.set_threshold(100, 2, 2)
    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.set_threshold(*before)


def _many_objects() -> int:
    return len([[number] for number in range(50_000)])


async def test_a_read_that_makes_many_objects_never_stops_the_loop_for_a_whole_collection(
    older_collections: Collections,
) -> None:
    _many_objects()
    assert older_collections  # outside of a read they happen
    before = gc.get_threshold()

    def read() -> int:
        older_collections.clear()
        made = _many_objects()
        return made if not older_collections else -1

    assert await BackgroundRead[int]()(read) == 50_000
    assert gc.get_threshold() == before


async def _outlives_the_deadline(read: Callable[[], int]) -> None:
    with pytest.raises(TimeoutError):
        await BackgroundRead[int](within_s=0.01)(read)


async def _is_cancelled(read: Callable[[], int]) -> None:
    task = asyncio.ensure_future(BackgroundRead[int]()(read))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _overlaps_another(read: Callable[[], int]) -> None:
    task = asyncio.ensure_future(BackgroundRead[int](within_s=0.01)(read))
    assert await BackgroundRead[int]()(_many_objects) == 50_000
    with pytest.raises(TimeoutError):
        await task


@pytest.mark.parametrize("ends", [_outlives_the_deadline, _is_cancelled, _overlaps_another])
async def test_a_read_that_hangs_does_not_keep_the_collector_away(
    ends: Callable[[Callable[[], int]], Awaitable[None]],
) -> None:
    before, goes_on = gc.get_threshold(), threading.Event()
    try:
        await ends(lambda: int(goes_on.wait(60)))
        assert gc.get_threshold() == before
    finally:
        goes_on.set()


async def test_a_read_that_fails_gives_its_error_and_the_collector_back() -> None:
    before = gc.get_threshold()

    def read() -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await BackgroundRead[int]()(read)
    assert gc.get_threshold() == before
