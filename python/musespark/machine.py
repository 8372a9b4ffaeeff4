"""What this machine offers: memory and its limits, cores, instruction set, folders."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from musespark.errors import InvalidRequest
from musespark.results import human_bytes


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _cgroup_folders() -> list[tuple[Path, str, str]]:
    """(folder, limit file, usage file) of this process's control group and those above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # v2
            root, files = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        elif controllers == "memory":  # v1
            root = Path("/sys/fs/cgroup/memory")
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = root / path.strip("/")
        folders += [(f, *files) for f in (own, *own.parents) if f == root or root in f.parents]
    return folders


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files, which the kernel gives back when memory is asked for."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = dict(line.split()[:2] for line in lines if " " in line)
    prefix = "total_" if "total_inactive_file" in stat else ""  # v1: with the groups below
    return sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))


def cgroup_memory() -> tuple[int, int] | None:
    """(limit, used) bytes of the control group that leaves least, None where none has a limit.

    What caches files is not counted as used: a mapped model would else use up its own container.
    """
    found = []
    for folder, limit_file, used_file in _cgroup_folders():
        limit, used = _number(folder / limit_file), _number(folder / used_file)
        if limit is not None and used is not None and limit < 1 << 60:
            found.append((limit, max(0, used - _reclaimable(folder))))
    return min(found, key=lambda group: group[0] - group[1], default=None)


def available_memory() -> int:
    """Bytes that can be allocated now without swapping: the kernel's estimate, cgroup included.

    ``MUSESPARK_MEMORY`` (bytes, or a number with K, M, G, T or KiB … TiB) stands in for it.
    """
    asked = os.environ.get("MUSESPARK_MEMORY")
    if asked:
        return bytes_of(asked, "MUSESPARK_MEMORY")
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    group = cgroup_memory()
    return available if group is None else max(0, min(available, group[0] - group[1]))


def bytes_of(text: str, name: str) -> int:
    """A number of bytes, or one with K, M, G, T or KiB … TiB; ``name``: what errors say."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*(?:([KMGT])(?:iB|B)?)?\s*", text)
    if match is None:
        raise InvalidRequest(f"{name} is {text!r:.60}; such as 6000000000, 6G or 6.5GiB")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1 if match[2] else 0))


def doctor() -> dict[str, Any]:
    """What this machine offers and what musespark chose, as plain data (``musespark doctor``)."""
    import musespark
    from musespark.engine import build_report
    from musespark.weights.cache import cache_folder, entries

    packed = entries()
    group = cgroup_memory()
    return {
        "musespark": musespark.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        **build_report(),
        "memory available": human_bytes(available_memory()),
        "memory limit (cgroup)": "none" if group is None else human_bytes(group[0]),
        "cache folder": str(cache_folder()),
        "packed models": f"{len([e for e in packed if e.whole])}, "
        f"{human_bytes(sum(e.bytes for e in packed))} (see musespark cache)",
    }
