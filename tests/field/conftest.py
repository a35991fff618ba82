"""Field tests: each case as public bug reports describe it, on real Kafka with the real process."""

from tests.integration.conftest import scene

__all__ = ["scene"]
