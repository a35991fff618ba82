"""The partition of a record that may be written to any: the key's, as long as that works."""

from dispatcher.kafka.partition_choice import AVOIDED_S, MOST_WAITING, PartitionChoice

KNOWN = range(6)
KEYS = [f"key{number}".encode() for number in range(60)]


def chosen(choice: PartitionChoice, key: bytes | None, led: set[int] | None = None, now: float = 0.0) -> int:
    """The partition of a write that is over at once."""
    partition = choice.begin("t", key, KNOWN, set(KNOWN) if led is None else led, now)
    choice.end("t", partition)
    return partition


def test_a_key_has_the_partition_that_every_client_of_kafka_gives_it() -> None:
    choice = PartitionChoice()
    assert [chosen(choice, b"21"), chosen(choice, b"foobar")] == [-973932308 % 2**31 % 6, -790332482 % 2**31 % 6]


def test_partitions_without_a_leader_are_left_out_for_records_with_and_without_a_key() -> None:
    choice = PartitionChoice()
    assert {chosen(choice, key, {1, 4}) for key in (*KEYS, *[None] * 60)} == {1, 4}


def test_a_failed_partition_is_left_out_for_a_minute_and_then_tried_by_one_write() -> None:
    choice = PartitionChoice()
    key = KEYS[0]
    failed = chosen(choice, key)
    choice.on_failed("t", failed, 0.0)
    assert chosen(choice, key, now=AVOIDED_S - 1) != failed
    assert chosen(PartitionChoice(), key, now=AVOIDED_S - 1) == failed
    assert [chosen(choice, key, now=AVOIDED_S + 1) == failed for _ in range(3)] == [True, False, False]
    choice.on_written("t", failed)
    assert chosen(choice, key, now=AVOIDED_S + 2) == failed


def test_if_all_partitions_have_failed_they_are_used() -> None:
    choice = PartitionChoice()
    for partition in KNOWN:
        choice.on_failed("t", partition, 0.0)
    assert {chosen(choice, key) for key in KEYS} == set(KNOWN)


def test_a_partition_whose_writes_do_not_end_gets_no_more_than_some_of_them() -> None:
    choice = PartitionChoice()
    stuck = chosen(choice, KEYS[0])
    for _ in range(MOST_WAITING):
        choice.begin("t", KEYS[0], KNOWN, KNOWN, 0.0)
    assert chosen(choice, KEYS[0]) != stuck
    choice.end("t", stuck)
    assert chosen(choice, KEYS[0]) == stuck
