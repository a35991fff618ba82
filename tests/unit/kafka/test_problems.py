"""What is wrong with Kafka: reported, logged once a minute, cleared."""

import pytest
from structlog.testing import capture_logs

from dispatcher.contract.kafka_problems import STOPS_READING, KafkaReason
from dispatcher.kafka.problems import LOG_EVERY_S, MAX_DETAIL, MAX_REPORTED, KafkaProblems
from dispatcher.telemetry import metrics

pytestmark = pytest.mark.usefixtures("_with_logs")

TOPIC_MISSING, PERMISSION, EXPIRED = (
    KafkaReason.TOPIC_MISSING,
    KafkaReason.PERMISSION_MISSING,
    KafkaReason.RECORDS_EXPIRED,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    metrics.initialise()
    return Clock()


@pytest.fixture
def problems(clock: Clock) -> KafkaProblems:
    return KafkaProblems(clock)


def _metric(reason: KafkaReason) -> float:
    return float(metrics.KAFKA_PROBLEM.labels(reason.value)._value.get())


def test_every_reason_has_a_series_from_the_start(clock: Clock) -> None:
    found = {sample.labels["reason"] for sample in metrics.KAFKA_PROBLEM.collect()[0].samples}
    assert found == {reason.value for reason in KafkaReason}


def test_a_problem_is_shown_until_it_is_cleared(problems: KafkaProblems) -> None:
    problems.report(TOPIC_MISSING, "topic t does not exist", source="probe")
    assert [(one.reason, one.detail, one.stops_reading) for one in problems.current] == [
        (TOPIC_MISSING, "topic t does not exist", True)
    ]
    assert _metric(TOPIC_MISSING) == 1
    problems.clear(TOPIC_MISSING, source="another")
    assert problems.current
    problems.clear(TOPIC_MISSING, source="probe")
    assert problems.current == ()
    assert _metric(TOPIC_MISSING) == 0


def test_a_reason_stays_until_its_last_source_clears_it(problems: KafkaProblems) -> None:
    problems.report(PERMISSION, "READ on topic a", source="a")
    problems.report(PERMISSION, "READ on topic b", source="b")
    problems.clear(PERMISSION, source="a")
    assert _metric(PERMISSION) == 1
    problems.clear(PERMISSION, source="b")
    assert _metric(PERMISSION) == 0


def test_the_same_problem_is_logged_at_once_and_then_once_a_minute(problems: KafkaProblems, clock: Clock) -> None:
    with capture_logs() as logs:
        for _ in range(100):
            for source in ("consumer", "producer", "probe"):
                problems.report(PERMISSION, "READ on topic t", source=source)
            clock.now += 1
    lines = [line for line in logs if line["event"] == "kafka problem"]
    assert len(lines) == 2
    assert lines[0]["reason"] == "permission_missing"
    assert lines[0]["detail"] == "READ on topic t"


def test_a_problem_that_flaps_is_logged_no_more_often(problems: KafkaProblems, clock: Clock) -> None:
    with capture_logs() as logs:
        for _ in range(50):
            problems.report(PERMISSION, "READ on topic t")
            problems.clear(PERMISSION)
            clock.now += 1
    assert len([line for line in logs if line["event"] == "kafka problem"]) == 1
    assert len([line for line in logs if line["event"] == "kafka problem solved"]) == 1


def test_another_detail_is_logged_at_once(problems: KafkaProblems) -> None:
    with capture_logs() as logs:
        problems.report(PERMISSION, "READ on topic a")
        problems.report(PERMISSION, "READ on topic b")
    assert [line["detail"] for line in logs] == ["READ on topic a", "READ on topic b"]


def test_a_problem_with_an_end_clears_itself(problems: KafkaProblems, clock: Clock) -> None:
    problems.report(EXPIRED, "30 records", lasts_s=600)
    clock.now += 599
    assert [one.stops_reading for one in problems.current] == [False]
    clock.now += 1
    assert problems.current == ()
    assert _metric(EXPIRED) == 0


def test_replacing_reports_what_a_source_sees_and_clears_the_rest_of_it(problems: KafkaProblems) -> None:
    problems.report(EXPIRED, "of another source", source="t/0")
    problems.replace("probe", {TOPIC_MISSING: "t", PERMISSION: "READ"})
    problems.replace("probe", {PERMISSION: "WRITE"})
    assert [(one.reason, one.detail) for one in problems.current] == [
        (PERMISSION, "WRITE"),
        (EXPIRED, "of another source"),
    ]
    problems.clear_all("probe")
    assert [one.reason for one in problems.current] == [EXPIRED]


def test_the_number_of_kept_problems_is_bounded(problems: KafkaProblems, clock: Clock) -> None:
    for number in range(MAX_REPORTED + 100):
        problems.report(EXPIRED, f"{number:6}" * MAX_DETAIL, source=str(number))
    assert len(problems.current) == MAX_REPORTED
    assert max(len(one.detail) for one in problems.current) == MAX_DETAIL
    assert len(problems._logged) <= MAX_REPORTED
    clock.now += LOG_EVERY_S
    problems.report(EXPIRED, "after a minute", source="0")
    assert len(problems._logged) == 1


def test_problems_that_stop_reading_come_first(problems: KafkaProblems) -> None:
    for reason in KafkaReason:
        problems.report(reason, "detail")
    stops = [one.stops_reading for one in problems.current]
    assert stops == sorted(stops, reverse=True)
    assert sum(stops) == len(STOPS_READING)
