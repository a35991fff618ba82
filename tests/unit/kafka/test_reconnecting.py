"""Errors that aiokafka doesn't expect of itself: they count as lost connections and lost memberships, not as the process's end."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, KafkaConnectionError, KafkaError

from dispatcher.config.kafka_settings import KafkaSettings
from dispatcher.contract.kafka_problems import KafkaReason
from dispatcher.kafka.broker_access import BrokerAccess
from dispatcher.kafka.problems import KafkaProblems
from dispatcher.kafka.reconnecting import _joining_again, _with_fresh_credentials
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
