"""Spark Nano without the settings of its pictures: a model that has a tower and sees nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import musespark

NANO = Path(musespark.__file__).parent / "nano"


def blind_nano(folder: Path) -> Path:
    """A copy of Nano's folder that says nothing of how pictures become patches."""
    folder.mkdir(parents=True)
    for path in NANO.iterdir():
        if path.is_file() and "processor" not in path.name:
            shutil.copy(path, folder)
    return folder
