"""Notices that this machine's clock was set, and keeps such a jump from ending events.

What waits is due by the wall clock, and expires by it. A clock that goes forward by a day would make every waiting
event a dead letter. So ages count by a clock of their own, never ahead of the wall clock, which it follows slowly.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from dispatcher.config.units import format_duration
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.contract.records import STEADY_CLOCK
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.retry_topics import CLOCKS_DIFFER_S

EVERY_S: Final = 5.0
FASTEST: Final = 1.5
"""Seconds that the clock of ages passes in one second at most: after a jump, events keep two thirds of their time."""
JUMP_REPORTED_S: Final = 3600.0
"""After this time a jump counts as a repair: the clock is taken for right."""
LATEST_ANSWER_S: Final = 60.0
"""Time within which a broker acknowledges a record after appending it: later, the write has failed."""
APPENDED_REPORTED_S: Final = 30.0
"""Time for which a difference from the brokers' clock is a problem, after the last record that showed it."""


class ClockCheck:
    """Compares the wall clock with the steady one and with the brokers'."""

    def __init__(
        self,
        problems: KafkaProblems,
        wall: Callable[[], float] | None = None,
        steady: Callable[[], float] = STEADY_CLOCK,
    ) -> None:
        """Takes the wall clock for right. `wall`: unix time. `problems` receives jumps and differences."""
        self._problems = problems
        self._wall = wall or time.time
        self._steady = steady
        self._age, self._age_at = self._wall(), steady()
        self._expected = self._age - self._age_at
        """The wall clock minus the steady one, as it was before a jump."""
        self._jumped_at: float | None = None

    def age_now(self) -> float:
        """Returns the unix time up to which the ages of events count: the wall clock's or, after a jump, less."""
        steady = self._steady()
        self._age = min(self._wall(), self._age + FASTEST * max(0.0, steady - self._age_at))
        self._age_at = steady
        return self._age

    async def run(self) -> None:
        """Checks the clock every 5 s until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(EVERY_S)

    def check(self) -> None:
        """Reports a clock that has jumped, until it is back or an hour has passed."""
        self.age_now()
        steady = self._age_at
        jump = self._wall() - steady - self._expected
        if self._jumped_at is None and abs(jump) > CLOCKS_DIFFER_S:
            self._jumped_at = steady
        if self._jumped_at is not None and (abs(jump) <= CLOCKS_DIFFER_S or steady - self._jumped_at > JUMP_REPORTED_S):
            self._jumped_at = None
            self._problems.clear(KafkaReason.CLOCK, source="clock")
        if self._jumped_at is None:
            self._expected += jump
            return
        how = f"{'forward' if jump > 0 else 'back'} by {format_duration(60.0 * round(abs(jump) / 60))}"
        detail = (
            f"this machine's clock went {how}: parked events are due at other times than they should be, and no event "
            "reaches its age limit by the jump; repair the node's time synchronisation"
        )
        self._problems.report(KafkaReason.CLOCK, detail, source="clock")

    def note_append(self, appended_ms: int) -> None:
        """Compares the wall clock with the time at which a broker appended a record: that time must have passed."""
        ahead = appended_ms / 1000 - self._wall()
        if ahead > CLOCKS_DIFFER_S:
            self._report_difference(ahead, "ahead of this machine's: parked events are due late")

    def note_own_append(self, appended_ms: int) -> None:
        """Compares the wall clock with the time at which a broker appended a record of ours, within the last minute."""
        self.note_append(appended_ms)
        behind = self._wall() - appended_ms / 1000
        if behind > LATEST_ANSWER_S + CLOCKS_DIFFER_S:
            self._report_difference(behind, "behind this machine's: events may reach their age limit early")

    def _report_difference(self, seconds: float, how: str) -> None:
        by = format_duration(60.0 * round(seconds / 60))
        detail = f"the brokers' clock is {by} {how}; repair the time synchronisation of the node or of the brokers"
        self._problems.report(KafkaReason.CLOCK, detail, source="brokers' clock", lasts_s=APPENDED_REPORTED_S)
