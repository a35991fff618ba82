"""A fleet of webhooks whose notifications are planned again and again."""

from dispatcher.contract.fleet_state import FleetState
from dispatcher.contract.tenant import TenantKey
from dispatcher.notifications.memory import FleetMemory, Memory, decode_fleet_memory, decode_memory, encode_memory
from dispatcher.notifications.news import Expiry, News, NewsKind, Subject
from dispatcher.notifications.planning import plan

NOW = 1_790_000_000.0
LUMA = TenantKey("luma", "prod")
ACTIVE, UNSTABLE, FAILING, DISABLED = (
    FleetState.ACTIVE, FleetState.UNSTABLE, FleetState.FAILING, FleetState.DISABLED,
)  # fmt: skip


class Fleet:
    """Plans again and again, and keeps what is remembered as the store does."""

    def __init__(self, others: int = 20) -> None:
        self.now = NOW
        self.memories: dict[TenantKey, Memory] = {}
        self.fleet = FleetMemory()
        self.sent: list[tuple[float, TenantKey, tuple[News, ...]]] = []
        self.to_operator: list[tuple[float, News]] = []
        self.others = [Subject(TenantKey(f"other-{number}", "prod"), ACTIVE, NOW) for number in range(others)]

    def step(
        self, *subjects: Subject, after_s: float = 30, own: tuple[Expiry, ...] = (), reaches_operator: bool = True
    ) -> list[NewsKind]:
        """Plans once, and returns what Luma is reported."""
        self.now += after_s
        named = {one.tenant for one in subjects}
        everyone = [*subjects, *(one for one in self.others if one.tenant not in named)]
        made = plan(everyone, self.memories, self.fleet, self.now, own=own, reaches_operator=reaches_operator)
        self.memories |= {key: decode_memory(encode_memory(one)) for key, one in made.memories.items()}
        self.fleet = decode_fleet_memory(encode_memory(made.fleet_memory))
        self.sent += [(self.now, notice.tenant, notice.news) for notice in made.notices]
        self.to_operator += [(self.now, news) for news in made.fleet]
        return [news.kind for notice in made.notices if notice.tenant == LUMA for news in notice.news]
