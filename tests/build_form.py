"""Marks the tests that can't run when the hot modules are compiled (docs/decisions/0008)."""

import pytest

from dispatcher.telemetry.build_form import FORM

interpreted_only = pytest.mark.skipif(FORM == "compiled", reason="replaces a function that compiled modules bind early")
