"""One line for each scenario: what was lost (nothing), what came twice, within which bound."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.integration.harness import RSS_LIMIT, Dispatcher, Stage

MOST_TASKS = 80
"""Of a process that has nothing to do; it has 35, and one more for each event that it had not let go."""
MOST_FILES = 600
"""Kept-alive connections, at most `max_in_flight`, and what is open from the start."""


@dataclass(frozen=True, slots=True)
class Row:
    """The ledger of a scenario."""

    scenario: str
    events: int
    delivered: int
    dead: int
    dead_expected: int
    lost: int
    repeats: int
    most_repeats: int
    peak_rss: int
    tasks: int | None
    """Tasks left in an idle process at the end; None if no process was running."""
    files: int | None
    """Open in it."""

    @classmethod
    async def of(cls, scenario: str, scene: Stage, *dispatchers: Dispatcher, most_repeats: int, dead: int = 0) -> "Row":
        """Reads both ledgers: the receiver's and the dead-letter topic."""
        found = await scene.dead()
        left = [one.left for one in dispatchers if one.left is not None]
        return cls(
            scenario=scenario,
            events=len(scene.expected),
            delivered=len(scene.expected.keys() & scene.receiver.accepted.keys()),
            dead=len(found),
            dead_expected=dead,
            lost=len(scene.missing() - found.keys()),
            repeats=scene.receiver.repeats(),
            most_repeats=most_repeats,
            peak_rss=max((one.peak_rss for one in dispatchers), default=0),
            tasks=max((one.tasks for one in left), default=None),
            files=max((one.files for one in left), default=None),
        )

    def check(self) -> None:
        """Asserts that nothing is lost or dead without need, and that repeats, memory and leftovers are within bounds."""
        assert self.lost == 0, self
        assert self.dead == self.dead_expected, self
        assert self.repeats <= self.most_repeats, self
        assert self.peak_rss < RSS_LIMIT, self
        assert self.tasks is None or self.tasks <= MOST_TASKS, self
        assert self.files is None or self.files <= MOST_FILES, self


def lines(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of the table."""
    names = f"{'events':>7} {'delivered':>9} {'dead':>5} {'lost':>5} {'twice':>6} {'bound':>6} {'RSS MiB':>8} {'tasks':>5} {'files':>5}"
    return [f"{'scenario':52} {names}"] + [
        f"{row.scenario:52} {row.events:7} {row.delivered:9} {row.dead:5} {row.lost:5} {row.repeats:6} "
        f"{row.most_repeats:6} {row.peak_rss >> 20:8} {_told(row.tasks):>5} {_told(row.files):>5}"
        for row in rows
    ]


def _told(count: int | None) -> str:
    return "-" if count is None else str(count)
