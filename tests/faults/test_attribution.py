"""The ledger run's own arithmetic: a repeat that no fault explains is found, whatever the others are."""

from tests.faults.ledger import Fault, Parked, Repeats, attribute
from tests.integration.harness import Sent

KILL = Fault("kill", 100.0, 115.0, 10, 100.0, "m0-1")
LATER = Fault("later kill", 200.0, 215.0, 10, 100.0, "m1-1")
BROKER = Fault("broker", 300.0, 315.0, 10, 100.0)
FAULTS = [KILL, LATER, BROKER]


def _found(sent: list[Sent], *parked: Parked) -> Repeats:
    return attribute({"event": sent}, {"event": parked}, FAULTS)


def test_an_event_that_was_accepted_once_does_not_count_as_repeated() -> None:
    found = _found([Sent("m0-1", 1, 99.0), Sent("m0-2", 1, 101.0, 101.1)])
    assert (found.of_fault.total(), found.unexplained) == (0, [])


def test_uncommitted_records_of_a_killed_process_are_repeats_of_the_kill() -> None:
    for accepted_at in (99.0, 99.9, 102.0):
        found = _found([Sent("m0-1", 1, accepted_at - 0.1, accepted_at), Sent("m0-2", 1, 103.0, 103.1)])
        assert (found.of_fault, found.unexplained) == ({"kill": 1}, [])
        assert found.longest_uncommitted == {"kill": max(0.0, 100.0 - accepted_at)}


def test_a_repeat_that_no_fault_explains_is_found() -> None:
    again = Sent("m0-2", 1, 103.0, 103.1)
    for first in (
        Sent("m0-1", 1, 90.0, 90.1),  # it had long been committed
        Sent("m2-1", 1, 99.9, 99.95),  # its process was not killed
        Sent("m0-1", 2, 99.9, 99.95),  # another attempt: the retry state was lost
    ):
        assert _found([first, again]).unexplained == ["event"]
    assert _found([Sent("m0-1", 1, 50.0, 50.1), Sent("m0-1", 1, 51.0, 51.1)]).unexplained == ["event"]


def test_one_kill_explains_one_repeat_of_an_event() -> None:
    sent = [Sent("m0-1", 1, 99.9, 99.95), Sent("m0-2", 1, 103.0, 103.1), Sent("m2-1", 1, 104.0, 104.1)]
    found = _found(sent)
    assert (found.of_fault, found.unexplained) == ({"kill": 1}, ["event"])


def test_an_event_that_was_parked_before_the_kill_and_again_after_it_has_two_lives() -> None:
    sent = [Sent("m2-1", 1, 150.0, 150.1), Sent("m3-1", 1, 151.0, 151.1)]
    copies = [Parked(1, 50.0), Parked(2, 99.5), Parked(2, 102.0), Parked(3, 103.0), Parked(3, 204.0)]
    found = _found(sent, *copies)
    assert (found.of_fault, found.parked, found.unexplained) == ({"kill": 1}, {"kill": 1}, [])
    assert _found(sent, Parked(1, 50.0), Parked(1, 52.0)).unexplained == ["event"], "no fault lies between"
    assert _found(sent, Parked(1, 90.0), Parked(1, 102.0)).unexplained == ["event"], "it had been committed"


def test_a_kill_right_after_parking_sends_the_copy_and_the_event() -> None:
    sent = [Sent("m2-1", 1, 101.0, 101.1), Sent("m0-2", 1, 104.0, 104.1)]
    assert _found(sent, Parked(1, 99.95)).of_fault == {"kill": 1}
    assert _found(sent, Parked(1, 90.0)).unexplained == ["event"]
    assert _found(sent).unexplained == ["event"]


def test_a_broker_fault_explains_what_happened_around_it_only() -> None:
    assert _found([Sent("m2-1", 1, 301.0, 301.1), Sent("m2-1", 1, 320.0, 320.1)]).of_fault == {"broker": 1}
    assert _found([Sent("m2-1", 1, 297.0, 297.1), Sent("m2-1", 1, 320.0, 320.1)]).unexplained == ["event"]
    assert _found([Sent("m2-1", 1, 320.0, 320.1), Sent("m2-1", 1, 321.0, 321.1)]).unexplained == ["event"]
