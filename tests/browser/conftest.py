"""The browser, for all tests of this folder; they skip where it or what drives it is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_support import Browser, why_not


@pytest.fixture(scope="session")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := why_not():
        pytest.skip(reason)
    shots = Path(os.environ.get("OBATCHD_TEST_SHOTS") or tmp_path_factory.mktemp("shots"))
    shots.mkdir(parents=True, exist_ok=True)
    browser = Browser(shots)
    yield browser
    browser.close()


@pytest.fixture
def browser(_browser: Browser) -> Browser:
    """With a context of its own, in which nothing was loaded yet."""
    _browser.context()
    return _browser
