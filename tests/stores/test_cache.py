"""The cache in front of a store, with a clock of its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dispatcher.config.settings import WebhookSettings
from dispatcher.config.webhook_revision import Webhook
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.tenant import TenantKey
from dispatcher.errors import StoreUnavailable, WebhookUnusable
from dispatcher.stores import cache as cache_module
from dispatcher.stores.cache import NOT_CACHED, NotCached, WebhookCache
from dispatcher.telemetry import metrics

LUMA = TenantKey("luma", "prod")
OTHER = TenantKey("luma", "stage")
NOBODY = TenantKey("nobody", "prod")


def webhook(tenant: TenantKey) -> Webhook:
    config = WebhookConfig(name="x", org=tenant.org, sandbox=tenant.sandbox, url="https://hooks.example/x")
    return Webhook.of(config, "test")


class FakeStore:
    """Answers from a dict; can be away, and can be made to wait."""

    def __init__(self, tenants: Sequence[TenantKey] = (LUMA, OTHER)) -> None:
        self.webhooks = {tenant: webhook(tenant) for tenant in tenants}
        self.asked: list[TenantKey] = []
        self.is_away = False
        self.knows_at_once = False
        self.unusable: set[TenantKey] = set()
        self.answers = asyncio.Event()
        self.answers.set()

    def get_cached(self, tenant: TenantKey) -> Webhook | NotCached | None:
        return self.webhooks.get(tenant) if self.knows_at_once else NOT_CACHED

    async def get(self, tenant: TenantKey) -> Webhook | None:
        self.asked.append(tenant)
        found = self.webhooks.get(tenant)
        await self.answers.wait()
        if self.is_away:
            raise StoreUnavailable("down")
        if tenant in self.unusable:
            raise WebhookUnusable(f"{tenant}: no key decrypts it")
        return found


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def cache_of(store: FakeStore, clock: Clock, size: int = 100) -> WebhookCache:
    settings = WebhookSettings(path=Path("."), cache_ttl=30, negative_ttl=5, cache_size=size)
    return WebhookCache(store, settings, clock)


@pytest.fixture
def cache(store: FakeStore, clock: Clock) -> WebhookCache:
    return cache_of(store, clock)


async def test_an_answer_is_used_for_its_time_and_then_asked_for_again(
    cache: WebhookCache, store: FakeStore, clock: Clock
) -> None:
    assert cache.get_cached(LUMA) is NOT_CACHED
    found = await cache.get(LUMA)
    assert found is store.webhooks[LUMA]
    clock.now += 29.9
    assert cache.get_cached(LUMA) is found
    assert await cache.get(LUMA) is found
    assert store.asked == [LUMA]
    clock.now += 0.1
    assert cache.get_cached(LUMA) is NOT_CACHED
    assert await cache.get(LUMA) is found
    assert store.asked == [LUMA, LUMA]


async def test_that_there_is_none_is_kept_for_a_shorter_time(
    cache: WebhookCache, store: FakeStore, clock: Clock
) -> None:
    assert await cache.get(NOBODY) is None
    assert cache.get_cached(NOBODY) is None
    clock.now += 5
    assert cache.get_cached(NOBODY) is NOT_CACHED
    store.webhooks[NOBODY] = webhook(NOBODY)
    assert await cache.get(NOBODY) is store.webhooks[NOBODY]


async def test_a_sandbox_never_sees_the_webhook_of_another(cache: WebhookCache, store: FakeStore) -> None:
    assert await cache.get(LUMA) is store.webhooks[LUMA]
    assert await cache.get(OTHER) is store.webhooks[OTHER]
    assert await cache.get(TenantKey("luma", "dev")) is None


async def test_simultaneous_callers_query_the_store_once(cache: WebhookCache, store: FakeStore) -> None:
    store.answers.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cache.get(LUMA)) for _ in range(50)]
        other = group.create_task(cache.get(OTHER))
        await asyncio.sleep(0)
        store.answers.set()
    assert {task.result() for task in tasks} == {store.webhooks[LUMA]}
    assert other.result() is store.webhooks[OTHER]
    assert store.asked == [LUMA, OTHER]
    assert repr(cache) == "<WebhookCache 2 tenants, 0 queried>"


async def test_if_the_querying_caller_is_cancelled_the_next_one_queries(cache: WebhookCache, store: FakeStore) -> None:
    store.answers.clear()
    tasks = [asyncio.create_task(cache.get(LUMA)) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    while len(store.asked) < 2:
        await asyncio.sleep(0)
    assert store.asked == [LUMA, LUMA]
    tasks[2].cancel()
    await asyncio.sleep(0)
    store.answers.set()
    assert await tasks[1] is store.webhooks[LUMA]
    assert await tasks[3] is store.webhooks[LUMA]
    assert store.asked == [LUMA, LUMA]
    assert [task.cancelled() for task in tasks] == [True, False, True, False]


async def test_cancelling_one_waiting_caller_does_not_affect_the_others(cache: WebhookCache, store: FakeStore) -> None:
    store.answers.clear()
    first, second = asyncio.create_task(cache.get(LUMA)), asyncio.create_task(cache.get(LUMA))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    store.answers.set()
    assert await first is store.webhooks[LUMA]
    assert second.cancelled()


async def test_while_the_store_is_unavailable_the_old_answer_is_used(
    cache: WebhookCache, store: FakeStore, clock: Clock
) -> None:
    found = await cache.get(LUMA)
    assert await cache.get(NOBODY) is None
    store.is_away = True
    clock.now += 3600
    stale, failed = metrics.STALE_ANSWERS._value.get(), metrics.STORE_FAILURES._value.get()
    assert await cache.get(LUMA) is found
    assert await cache.get(NOBODY) is None
    assert metrics.STALE_ANSWERS._value.get() == stale + 2
    assert metrics.STORE_FAILURES._value.get() == failed + 2


async def test_an_unavailable_store_is_queried_once_a_second_per_tenant(
    cache: WebhookCache, store: FakeStore, clock: Clock
) -> None:
    await cache.get(LUMA)
    store.is_away = True
    clock.now += 3600
    for _ in range(20):
        await cache.get(LUMA)
        clock.now += 0.1
    assert 3 <= len(store.asked) <= 4
    store.is_away = False
    clock.now += 1
    store.webhooks[LUMA] = webhook(LUMA)
    assert await cache.get(LUMA) is store.webhooks[LUMA]


async def test_an_unavailable_store_is_an_error_without_a_cached_answer(cache: WebhookCache, store: FakeStore) -> None:
    store.is_away = True
    store.answers.clear()
    tasks = [asyncio.create_task(cache.get(LUMA)) for _ in range(3)]
    await asyncio.sleep(0)
    store.answers.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["the webhook store is unavailable: down"] * 3
    assert all(isinstance(result, StoreUnavailable) for result in results)
    assert store.asked == [LUMA]
    store.is_away = False
    assert await cache.get(LUMA) is store.webhooks[LUMA]


async def test_a_store_that_never_answers_is_away(
    cache: WebhookCache, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "STORE_TIMEOUT_S", 0.01)
    store.answers.clear()
    with pytest.raises(StoreUnavailable, match="no answer in time"):
        await cache.get(LUMA)


async def test_an_unusable_webhook_is_looked_up_again_now_and_then(
    cache: WebhookCache, store: FakeStore, clock: Clock
) -> None:
    """Its events come and go meanwhile: each of them must not cost a query. What was in use before is in use no more."""
    known = await cache.get(LUMA)
    assert known is not None
    store.unusable.add(LUMA)
    cache.invalidate(LUMA)
    for _ in range(3):
        with pytest.raises(WebhookUnusable, match="no key decrypts it"):
            await cache.get(LUMA)
    assert store.asked == [LUMA] * 2
    assert cache.get_cached(LUMA) is NOT_CACHED
    assert not cache.is_current(known)
    store.is_away = True
    clock.now += 5.1
    with pytest.raises(WebhookUnusable):
        await cache.get(LUMA)  # as far as is known
    store.is_away = False
    store.unusable.clear()
    cache.invalidate(LUMA)
    assert await cache.get(LUMA) is known


async def test_an_invalidated_answer_is_refreshed_and_used_until_then(cache: WebhookCache, store: FakeStore) -> None:
    found, other = await cache.get(LUMA), await cache.get(OTHER)
    cache.invalidate(LUMA)
    assert cache.get_cached(LUMA) is NOT_CACHED
    assert cache.get_cached(OTHER) is other
    store.is_away = True
    assert await cache.get(LUMA) is found
    cache.invalidate()
    assert cache.get_cached(LUMA) is NOT_CACHED
    assert cache.get_cached(OTHER) is NOT_CACHED


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("asked_again", [False, True])
async def test_an_answer_from_before_an_invalidation_is_not_kept(
    cache: WebhookCache, store: FakeStore, everything: bool, asked_again: bool
) -> None:
    old = store.webhooks[LUMA]
    store.answers.clear()
    early = asyncio.create_task(cache.get(LUMA))
    while not store.asked:
        await asyncio.sleep(0)
    store.webhooks[LUMA] = webhook(LUMA)
    cache.invalidate(None if everything else LUMA)
    late = asyncio.create_task(cache.get(LUMA)) if asked_again else None
    await asyncio.sleep(0)
    store.answers.set()
    assert await early is old
    if late is None:
        assert cache.get_cached(LUMA) is NOT_CACHED
    else:
        assert await late is store.webhooks[LUMA]
        assert cache.get_cached(LUMA) is store.webhooks[LUMA]


async def test_the_tenants_whose_answer_is_oldest_go_first(clock: Clock) -> None:
    """A tenant that is looked up all the time gets a new answer each `cache_ttl`, and stays."""
    tenants = [TenantKey(str(number), "prod") for number in range(5)]
    store = FakeStore(tenants)
    cache = cache_of(store, clock, size=3)
    await cache.get(tenants[0])
    clock.now += 20
    for tenant in tenants[1:3]:
        await cache.get(tenant)
    clock.now += 20
    for tenant in (tenants[0], tenants[3]):
        await cache.get(tenant)
    assert [cache.get_cached(tenant) is NOT_CACHED for tenant in tenants] == [False, True, False, False, True]
    assert repr(cache) == "<WebhookCache 3 tenants, 0 queried>"


async def test_a_bug_in_the_store_reaches_everyone_and_stays_a_bug(cache: WebhookCache, store: FakeStore) -> None:
    async def broken(tenant: TenantKey) -> Webhook | None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    store.get = broken  # type: ignore[method-assign]
    results = await asyncio.gather(cache.get(LUMA), cache.get(LUMA), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError, ZeroDivisionError]


async def test_a_store_in_memory_is_queried_without_a_wait_and_its_answer_cached(
    store: FakeStore, cache: WebhookCache, clock: Clock
) -> None:
    store.knows_at_once = True

    assert cache.get_cached(LUMA) is store.webhooks[LUMA]
    assert cache.get_cached(NOBODY) is None
    known = store.webhooks.pop(LUMA)
    assert cache.get_cached(LUMA) is known, "for as long as it is fresh"
    assert cache.is_current(known)
    clock.now += 31
    assert cache.get_cached(LUMA) is None
    assert not cache.is_current(known)
    assert store.asked == []


async def test_a_webhook_at_another_line_of_its_file_is_the_same_one(
    store: FakeStore, cache: WebhookCache, clock: Clock
) -> None:
    """Every event that waits for it would be looked up again, and go to the end of its lane."""
    store.knows_at_once = True
    known = cache.get_cached(LUMA)
    assert isinstance(known, Webhook)
    store.webhooks[LUMA] = replace(known, source="another line")
    clock.now += 31
    assert cache.get_cached(LUMA) is store.webhooks[LUMA]
    assert cache.is_current(known)


async def test_an_invalidated_answer_is_looked_up_again(store: FakeStore, cache: WebhookCache) -> None:
    store.knows_at_once = True
    cache.get_cached(LUMA)
    edited = store.webhooks[LUMA] = webhook(LUMA)
    cache.invalidate(LUMA)

    assert cache.get_cached(LUMA) is edited
