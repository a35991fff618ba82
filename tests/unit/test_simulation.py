"""Thousands of short histories in virtual time: whatever fails, and whenever, nothing is lost and nothing is repeated
that was not under way. What happens in a history and what must hold is in `simulation/world.py`.

The same histories each time, so that a failure is the change's and not chance's; `SIMULATION_FIRST=100000` begins with
another seed, `SIMULATION_HISTORIES=20000` lives through more, `SIMULATION_SEED=17` through the one of that seed.
`compiled.sh` lives through two thousand others.
"""

import os

import pytest

from tests.unit import virtual_time
from tests.unit.simulation.world import history

HISTORIES = int(os.environ.get("SIMULATION_HISTORIES", "1000"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "1"))


@pytest.mark.timeout(400)
def test_every_record_ends_in_an_outcome_before_its_offset_is_committed_and_none_is_lost() -> None:
    only = os.environ.get("SIMULATION_SEED")
    first = FIRST if only is None else int(only)
    seeds = range(first, first + HISTORIES) if only is None else [first]
    events = repeats = licences = flights = lost = 0
    for seed in seeds:
        try:
            world = virtual_time.run(history(seed))
        except BaseException:
            print(f"SIMULATION_SEED={seed} repeats this history")
            raise
        events += len(world.events)
        repeats += world.repeats
        licences += world.licences
        flights += world.flights
        lost += world.lost

    print(
        f"SIMULATION_SEED={first} and {len(seeds) - 1} more: {events} events, lost 0, "
        f"and {lost} with the only log that held them, "
        f"repeats {repeats} of {licences}; {flights} ended without a task"
    )
    assert only is not None or (events > HISTORIES and flights > events / 4)
