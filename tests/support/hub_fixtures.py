"""pytest plugin: a hub on this machine for each test."""

from __future__ import annotations

import sys
import time

import huggingface_hub.file_download
import pytest
from huggingface_hub import constants

from musespark.weights import hubtransfer
from support.fake_hub import FakeHub


@pytest.fixture(scope="module")
def hub_servers():
    with FakeHub() as running:
        yield running


@pytest.fixture
def fake(hub_servers, tmp_path, monkeypatch):
    """The hub, empty, with a cache of its own and nobody logged in. What the environment says is
    read when ``huggingface_hub`` is imported, so it is set there; one test goes by environment."""
    hub_servers.__dict__.update(repos={}, asked=[], break_after=0, breaks=0, status=0, forged={})
    url = hub_servers.url()
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, huggingface_hub.file_download):  # version 0 imports their names
        for name, value in (("ENDPOINT", url), ("HUGGINGFACE_CO_URL_TEMPLATE", template)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "packed"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.chdir(tmp_path)
    # No pauses between attempts.
    monkeypatch.setattr(huggingface_hub.file_download, "time", _Hasty)
    monkeypatch.setattr(sys.modules["huggingface_hub.utils._http"], "time", _Hasty)
    monkeypatch.setattr(hubtransfer, "_PAUSE_S", 0)
    forget_sessions()
    yield hub_servers
    forget_sessions()


def forget_sessions() -> None:
    """Version 0 of the library makes offline mode a part of its sessions."""
    getattr(sys.modules["huggingface_hub.utils._http"], "reset_sessions", lambda: None)()


class _Hasty:
    sleep = staticmethod(lambda seconds: None)
    time, monotonic = time.time, time.monotonic
