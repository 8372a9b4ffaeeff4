"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports huggingface_hub: no test reaches a network by accident.
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files beside the repository; without it a test skips, but fails in CI."""
    data = SHARED / "data"
    if not data.is_dir():
        message = "the real test files (../shared/data beside the repository) are not here"
        if os.environ.get("CI") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return data


@pytest.fixture(autouse=True, scope="session")
def nothing_calibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests say themselves what is calibrated for Spark Nano: what is shipped for it ends thoughts
    that they look at."""
    from musespark.thinking import thresholds

    shipped = thresholds.SHIPPED
    thresholds.SHIPPED = tmp_path_factory.mktemp("calibrated") / "nothing.json"
    yield
    thresholds.SHIPPED = shipped
