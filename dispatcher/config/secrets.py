"""Reads the secrets that documents refer to, and keeps them out of texts, logs and tracebacks.

A secret in the configuration is `{file: path}` (relative to the file that names it) or `{env: NAME}`. It is resolved
while the document is validated, so that a missing file is reported with its place like any other problem. The webhook
store watches the files and loads the webhooks again when a file rotates.
"""

import hashlib
import hmac
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import structlog
from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from dispatcher.config.secret_scope import MAX_SECRET_BYTES, OutOfScope, SecretScope, read_secret_file

log = structlog.get_logger(__name__)

_SECRET_WORDS = re.compile(r"auth|token|secret|key|pass|sign|credential|session|cookie|bearer|jwt", re.IGNORECASE)


def suggests_a_secret(name: str) -> bool:
    """Returns True if tenants usually put a secret in a header or claim of this name. Its value is then not shown."""
    return _SECRET_WORDS.search(name) is not None


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Resolves secrets while a document is validated; it is passed as validation context.

    The usual call is `SecretSource(base).as_context()`. `resolve=False` checks only the form of the references, for
    a check on a machine without the secrets.
    """

    base: Path
    """Directory that relative `file:` references start from."""
    resolve: bool = True
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    """Environment in which `env:` references are looked up."""
    scope: SecretScope | None = None
    """Limits for references; None for the operator's own documents."""

    def as_context(self) -> dict[str, Self]:
        return {"secrets": self}


class Secret:
    """Secret bytes. `repr`, `str`, JSON, logs and tracebacks show `<secret>` instead."""

    __slots__ = ("_reference", "_value", "file")

    def __init__(self, value: bytes, reference: dict[str, str] | None = None, file: Path | None = None) -> None:
        self._value = value
        self._reference = reference
        self.file = file
        """The file that the secret was read from; None if it came from elsewhere."""

    def reveal(self) -> bytes:
        """Returns the bytes. Callers use them at once and never store them."""
        return self._value

    def reveal_text(self) -> str:
        """Returns the secret, decoded as UTF-8.

        Raises:
            ValueError: it is not UTF-8. The message quotes nothing of it.
        """
        try:
            return self._value.decode()
        except UnicodeDecodeError:
            raise ValueError("the secret is not UTF-8 text: check that it is the right file") from None

    @property
    def reference(self) -> dict[str, str] | None:
        """`{"file": …}` or `{"env": …}`; None if the secret was not given by reference."""
        return self._reference

    def fingerprint(self) -> str:
        """Returns twelve hexadecimal digits that show whether two secrets are equal, and reveal nothing else."""
        return hashlib.blake2b(self._value, digest_size=6, person=b"fingerprint").hexdigest()

    def __repr__(self) -> str:
        return "<secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[object], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            resolve_secret,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda secret: secret.reference or "<secret>"
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        def reference(kind: str, text: str) -> dict[str, object]:
            return {
                "type": "object",
                "properties": {kind: {"type": "string", "minLength": 1, "description": text}},
                "required": [kind],
                "additionalProperties": False,
            }

        return {
            "description": "A secret, by reference.",
            "oneOf": [
                reference("file", "Path of the file that holds it, relative to the file that names it."),
                reference("env", "Name of the environment variable that holds it."),
            ],
        }


def resolve_secret(value: object, info: core_schema.ValidationInfo[Any]) -> Secret:
    """Returns the secret that a reference in a document names, if the context's `SecretSource` allows it.

    Raises:
        PydanticCustomError: `value` isn't a reference, or the secret can't be read.
    """
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        raise PydanticCustomError("secret_inline", "a secret can't be written here: write {file: PATH} or {env: NAME}")
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= {"file", "env"}:
        raise PydanticCustomError("secret_reference", "write {file: PATH} or {env: NAME}")
    ((kind, where),) = value.items()
    if not isinstance(where, str) or not where:
        raise PydanticCustomError("secret_reference", "write {file: PATH} or {env: NAME}")
    source = (info.context or {}).get("secrets")
    if not isinstance(source, SecretSource) or not source.resolve:
        return Secret(b"", {kind: where})
    return _from_file(where, source) if kind == "file" else _from_environment(where, source)


def _text_only(secret: Secret) -> Secret:
    text = secret.reveal_text()
    if any(unicodedata.category(character) == "Cc" for character in text) or text.startswith("\ufeff"):
        raise ValueError("the secret has a control character or a byte order mark: write its text only")
    return secret


def _padded_text_only(secret: Secret) -> Secret:
    _text_only(Secret(secret.reveal_text().strip().encode()))
    return secret


TextSecret = Annotated[Secret, AfterValidator(_text_only)]
"""A secret that is text, such as a password."""
PaddedTextSecret = Annotated[Secret, AfterValidator(_padded_text_only)]
"""A secret that is text, and used without the blanks around it."""


def _from_environment(name: str, source: SecretSource) -> Secret:
    if source.scope is not None:
        problem = source.scope.problem_of_variable(name)
        if problem is not None:
            raise PydanticCustomError("secret_scope", "{problem}", {"problem": problem})
    text = source.environ.get(name, "").removesuffix("\n").removesuffix("\r")  # as from a file
    if not text:
        raise PydanticCustomError(
            "secret_env", "environment variable {name} is not set, or empty: set it", {"name": name}
        )
    return Secret(os.fsencode(text), {"env": name})


def _from_file(where: str, source: SecretSource) -> Secret:
    path = source.base / where
    try:
        text = read_secret_file(path, source.scope)
    except OutOfScope as error:
        raise PydanticCustomError("secret_scope", "{problem}", {"problem": str(error)}) from None
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise PydanticCustomError(
            "secret_file",
            "secret file {path} can't be read ({why}): create it, or correct the path",
            {"path": str(path), "why": why},
        ) from None
    text = text.removesuffix(b"\n").removesuffix(b"\r")
    if not text:
        raise PydanticCustomError(
            "secret_file", "secret file {path} is empty: write the secret in it", {"path": str(path)}
        )
    if len(text) > MAX_SECRET_BYTES:
        raise PydanticCustomError(
            "secret_file", "secret file {path} has over 64 KiB: check that it is the right file", {"path": str(path)}
        )
    return Secret(text, {"file": where}, path)


def reread(secret: Secret) -> Secret:
    """Reads the secret's file again and returns the current secret. Returns `secret` itself if it has no file.

    Blocks while it reads a small file, and never waits for a pipe or a device.

    Raises:
        OSError: the file can't be read, or it is not a regular file.
        ValueError: the file is empty or larger than 64 KiB.
    """
    if secret.file is None:
        return secret
    text = read_secret_file(secret.file).removesuffix(b"\n").removesuffix(b"\r")
    if not text:
        raise ValueError(f"{secret.file} is empty")
    if len(text) > MAX_SECRET_BYTES:
        raise ValueError(f"{secret.file} has over 64 KiB: check that it is the right file")
    return Secret(text, secret.reference, secret.file)


class RotatingSecret:
    """A secret of the settings that may rotate while the process runs: its file is read again for each use."""

    def __init__(self, secret: Secret, setting: str, check: Callable[[Secret], object] = Secret.reveal) -> None:
        """Uses `secret` as it was read with the settings until `current` is called.

        Args:
            setting: the setting that log lines name.
            check: raises ValueError if a secret can't be used.
        """
        self._last = secret
        self._setting = setting
        self._check = check
        self._why = ""

    def current(self) -> Secret:
        """Returns the secret as its file has it now, or the last good one, with a log line, if that can't be used.

        Blocks while it reads a small file.
        """
        try:
            found = reread(self._last)
            self._check(found)
        except (OSError, ValueError) as error:
            if str(error) != self._why:
                self._why = str(error)
                log.warning(
                    "a secret can't be read again: the last good one is used",
                    setting=self._setting,
                    why=self._why[:256],
                )
        else:
            self._last, self._why = found, ""
        return self._last
