"""Fixtures for what runs on several threads."""

from collections.abc import Iterator

import pytest

from netwright.runtime import pool, team


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread is suspended for making others wait, as happens when the tests' machine is busy."""
    assert pool.shared.close(timeout=30)
    monkeypatch.setattr(team, "PATIENCE_SECONDS", 1e5)
    yield
    assert pool.shared.close(timeout=30)
