"""What this machine offers: memory and its limits, cores, instruction set, folders."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def cgroup_memory() -> tuple[int, int] | None:
    """(limit, used) bytes of the control group (v2, then v1), None where there is no limit."""
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        limit, used = _number(limit_file), _number(used_file)
        if limit is not None and used is not None and limit < 1 << 60:
            return limit, used
    return None


def available_memory() -> int:
    """Bytes that can be allocated now without swapping: the kernel's estimate, cgroup included."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    group = cgroup_memory()
    return available if group is None else max(0, min(available, group[0] - group[1]))


def doctor() -> dict[str, Any]:
    """What this machine offers and what musespark chose, as plain data (``musespark doctor``)."""
    import musespark
    from musespark.engine import build_report
    from musespark.weights.cache import cache_folder

    group = cgroup_memory()
    return {
        "musespark": musespark.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        **build_report(),
        "memory available": f"{available_memory() / 2**30:.1f} GiB",
        "memory limit (cgroup)": "none" if group is None else f"{group[0] / 2**30:.1f} GiB",
        "cache folder": str(cache_folder()),
    }
