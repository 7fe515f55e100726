"""What several files of the lab's tests need."""

from __future__ import annotations

import browser
import pytest


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of an installed browser."""
    found = browser.find()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is on the PATH")
    return found
