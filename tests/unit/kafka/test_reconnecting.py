"""Errors that aiokafka doesn't expect of itself count as lost connections and memberships; the process goes on."""

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka import reconnecting
from dispatcher.kafka.broker_access import BrokerAccess
from dispatcher.kafka.port_diagnosis import _mechanisms
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.reconnecting import _bootstrapping_again, _joining_again, _with_fresh_credentials
from dispatcher.telemetry import metrics

ODD = [ValueError("a nonce that is none"), KeyError("v"), AssertionError()]
SETTINGS = KafkaSettings.model_validate({"bootstrap_servers": "none:1", "topic": "events", "group_id": "a"})


@pytest.mark.parametrize("error", ODD, ids=repr)
async def test_an_odd_answer_while_connecting_is_an_error_of_the_connection(error: Exception) -> None:
    problems = KafkaProblems()
    access = BrokerAccess(SETTINGS, problems)
    connection = SimpleNamespace(host="127.0.0.1", port=1, _sasl_oauth_token_provider=access)

    async def connect(_: Any) -> None:
        raise error

    with pytest.raises(KafkaConnectionError, match=f"odd answer while connecting: {type(error).__name__}") as raised:
        await _with_fresh_credentials(connect)(connection)
    assert raised.value.__cause__ is error
    assert access.last_error is not None
    assert all(problem.reason is KafkaReason.UNREACHABLE for problem in problems.current)


@pytest.mark.parametrize("error", [*ODD, GroupAuthorizationFailedError("a")], ids=repr)
async def test_a_member_whose_heartbeats_end_joins_again(error: Exception) -> None:
    """Whatever ends them: aiokafka starts them only with the next join."""
    rejoins = 0
    bugs = metrics.ERRORS.labels("consumer")._value.get()

    def request_rejoin() -> None:
        nonlocal rejoins
        rejoins += 1

    async def heartbeats(_: Any) -> None:
        raise error

    with pytest.raises(KafkaError) as raised:
        await _joining_again(heartbeats)(SimpleNamespace(request_rejoin=request_rejoin))
    assert rejoins == 1
    is_known = isinstance(error, KafkaError)
    assert (raised.value is error) is is_known
    assert metrics.ERRORS.labels("consumer")._value.get() == bugs + (0 if is_known else 1)


@pytest.mark.parametrize("error", [*ODD, struct.error("short")], ids=repr)
async def test_an_odd_answer_to_a_second_bootstrap_ends_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's only task that asks for metadata would end, and the client would never find a broker again."""
    monkeypatch.setattr(reconnecting, "BOOTSTRAP_AGAIN_S", 0.0)
    bootstraps = 0

    async def silent(*_: object) -> bool:
        return False

    async def odd(*_: object) -> bool:
        nonlocal bootstraps
        bootstraps += 1
        raise error

    monkeypatch.setattr(reconnecting, "_bootstrap_again", odd)
    client = SimpleNamespace(_sasl_oauth_token_provider=None)
    for _ in range(2):
        assert not await _bootstrapping_again(silent)(client, None, ())
    assert bootstraps == 2


ANSWER = struct.pack(">hih5sh13s", 33, 2, 5, b"PLAIN", 13, b"SCRAM-SHA-256")


@pytest.mark.parametrize("length", range(len(ANSWER)))
def test_an_answer_about_mechanisms_that_is_cut_short_names_none(length: int) -> None:
    assert _mechanisms(ANSWER[:length]) == []
    assert _mechanisms(ANSWER) == ["PLAIN", "SCRAM-SHA-256"]
