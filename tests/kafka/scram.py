"""Changes a SCRAM password in a running broker (KIP-554), which aiokafka knows no request for."""

import hashlib
import os
import struct

from tests.kafka.raw_request import answer_of

_ALTER_USER_SCRAM_CREDENTIALS = 51
_ITERATIONS = 4096
_MECHANISMS = {1: "sha256", 2: "sha512"}


async def set_password(address: str, user: str, password: str) -> None:
    """Sets the password for both SCRAM mechanisms. `address`: a PLAINTEXT listener."""
    for number, name in _MECHANISMS.items():  # the broker takes one mechanism a request
        await _send(address, user, _upsert(user, number, name, password))


async def _send(address: str, user: str, upsert: bytes) -> None:
    body = _length(0) + _length(1) + upsert + b"\0"
    answer = await answer_of(address, _ALTER_USER_SCRAM_CREDENTIALS, body, is_flexible=True)
    # correlation (4), tags (1), throttle (4), array length (1), then by user: compact name, error code
    (error_code,) = struct.unpack_from(">h", answer, 11 + len(user))
    assert error_code == 0, answer


def _upsert(user: str, number: int, name: str, password: str) -> bytes:
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac(name, password.encode(), salt, _ITERATIONS)
    return _compact(user.encode()) + struct.pack(">bi", number, _ITERATIONS) + _compact(salt) + _compact(salted) + b"\0"


def _compact(value: bytes) -> bytes:
    return _length(len(value)) + value


def _length(length: int) -> bytes:
    assert length < 127  # one byte of a varint
    return bytes([length + 1])
