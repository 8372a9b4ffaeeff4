"""Files from a hub into the cache of ``huggingface_hub``, whose formats and settings these are.

What ``huggingface_hub`` does not do is done here: a broken download of a large file is taken up
where it was left also by another process, the disk is asked for room before the first byte, and
every failure is one of ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import musespark
from musespark.errors import AccessDenied, CorruptFile, Error, HubUnavailable, InvalidRequest
from musespark.weights.files import WriteFailed
from musespark.weights.hubids import HubId

# Called with the bytes of the file at hand that are on the disk.
Count = Callable[[int], None]
# Of a file of a commit: in the snapshot; its content under the cache's name for it alone; there
# with another length than the hub says; nowhere.
State = Literal["here", "blob", "damaged", "missing"]
TIMEOUT_S = 10.0
_PAUSE_S = 1.0  # before a connection that broke is made anew
_RESUMABLE = 8 << 20  # smaller files are not worth the second request
_LOGIN = "log in (`hf auth login`) or set HF_TOKEN"
_PARTIAL = ".musespark.incomplete"
_BARS = "huggingface_hub"
_OURS = {"library_name": "musespark", "library_version": musespark.__version__}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}


def storage_of(repo: str) -> Path:
    """The folder of a model in the cache (``HF_HOME``, ``HF_HUB_CACHE``)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def api() -> Any:
    """A client of the hub that says who asks."""
    from huggingface_hub import HfApi

    return HfApi(**_OURS)


@contextlib.contextmanager
def typed_errors(hub_id: HubId, doing: str) -> Iterator[None]:
    """Whatever ``huggingface_hub`` and the clients under it raise comes out as one of our errors,
    caused by the other; `doing` says what failed."""
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise _typed(error, hub_id, doing) from error


def _typed(error: BaseException, hub_id: HubId, doing: str) -> Error:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _typed(error.__cause__, hub_id, doing)
    page = f"{constants.ENDPOINT}/{hub_id.repo}"
    if isinstance(error, errors.GatedRepoError):
        return AccessDenied(f"{hub_id.repo} is gated: ask for access at {page}, then {_LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InvalidRequest(
            f"{constants.ENDPOINT} has no model {hub_id.repo!r}, or it is private: then {_LOGIN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InvalidRequest(f"{hub_id.repo} has no revision {hub_id.branch!r} (see {page})")
    if isinstance(error, errors.HFValidationError):
        return InvalidRequest(f"source {str(hub_id)!r:.300} is no hub id: {_first_line(error)}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnavailable(f"{doing}: HF_HUB_OFFLINE is set")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.DisabledRepoError) or status in (401, 403):
        return AccessDenied(f"{doing}: {page} answers {status} (access refused); {_LOGIN}")
    if isinstance(error, errors.HfHubHTTPError) and status is not None:
        return HubUnavailable(f"{doing}: {constants.ENDPOINT} answers {status}")
    if isinstance(error, OSError) and error.errno in _DISK:
        return disk_failure(error, doing)
    return HubUnavailable(f"{doing}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__


def disk_failure(error: OSError, doing: str) -> WriteFailed:
    """The error of a cache that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "; HF_HOME names another folder for what is downloaded"
    return WriteFailed(error.errno or 0, f"{doing}: {reason}{hint}", error.filename)


def check_room(repo: str, sizes: dict[str, int]) -> None:
    """WriteFailed where the cache's disk has no room for blobs (name -> bytes) not yet there."""
    folder = storage_of(repo)
    begun = (folder / "blobs" / f"{blob}{_PARTIAL}" for blob in sizes)
    needed = sum(sizes.values()) - sum(p.stat().st_size for p in begun if p.exists())
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WriteFailed(
            errno.ENOSPC,
            f"{repo} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
            "HF_HOME names another folder for what is downloaded",
            str(folder),
        )


class _CallerError(BaseException):
    """Carries what the caller's progress function raised past everyone who catches exceptions."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error


def state_of(target: Path, blob: Path | None, size: int | None) -> State:
    """What the cache has of a file of `size` bytes (None: not known), `target` in its snapshot,
    whose content it would keep as `blob` (None: not known)."""
    for path, found in ((target, "here"), (blob, "blob")):
        if path is not None and path.exists():
            return found if size in (None, path.stat().st_size) else "damaged"
    return "missing"


def fetch_file(
    hub_id: HubId, commit: str, name: str, size: int | None, state: State, count: Count
) -> Path:
    """The path of a file in the cached snapshot of `commit`; downloads it where it is not there.

    A file appears in the snapshot whole or not at all; one whose `state` is damaged is downloaded
    again. What `count` raises ends the download and comes out as it is.
    """
    if state == "here":
        return storage_of(hub_id.repo) / "snapshots" / commit / name
    damaged = state == "damaged"

    def counted(bytes_here: int) -> None:
        try:
            count(bytes_here)
        except Exception as error:
            raise _CallerError(error) from None

    try:
        with typed_errors(hub_id, f"downloading {name} of {hub_id.repo}"), _no_bars():
            if not damaged and (size is None or size >= _RESUMABLE):
                _into_blobs(hub_id.repo, commit, name, counted)
            return Path(_through_library(hub_id.repo, commit, name, counted, damaged))
    except _CallerError as carried:
        raise carried.error from None


def read_range(hub_id: HubId, commit: str, name: str, begin: int, end: int) -> tuple[bytes, int]:
    """The bytes begin … end of a file on the hub (fewer where it ends before), and how many it has.

    HubUnavailable where the answer is another: what was not asked for is not received.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    doing = f"reading bytes {begin} to {end} of {name} of {hub_id.repo}"
    url = hf_hub_url(hub_id.repo, name, revision=commit)
    headers = build_hf_headers(**_OURS)
    headers |= {"range": f"bytes={begin}-{end - 1}", "accept-encoding": "identity"}
    with typed_errors(hub_id, doing), _streamed(get_session(), url, headers) as response:
        hf_raise_for_status(response)
        said = response.headers.get("content-range", "")
        span = re.fullmatch(rf"bytes {begin}-(\d{{1,18}})/(\d{{1,18}})", said)
        last, size = (int(span[1]), int(span[2])) if span else (0, 0)
        if response.status_code != 206 or last != min(end, size) - 1:
            raise HubUnavailable(
                f"{doing}: the answer is {response.status_code} with range {said!r:.80}"
            )
        pieces = getattr(response, "iter_bytes", None) or response.iter_content
        data = bytearray()
        for piece in pieces(chunk_size=1 << 16):
            data += piece
            if len(data) > last + 1 - begin:
                break
        if len(data) != last + 1 - begin:
            raise HubUnavailable(f"{doing}: {len(data)} bytes came")
    return bytes(data), size


def _streamed(session: Any, url: str, headers: dict[str, str]) -> Any:
    """A GET whose body is read as it comes: by httpx or, in older versions, by requests."""
    if callable(getattr(session, "stream", None)):
        return session.stream("GET", url, headers=headers, timeout=TIMEOUT_S)
    return session.get(url, headers=headers, timeout=TIMEOUT_S, stream=True)


def note_revision(hub_id: HubId, commit: str) -> None:
    """Lets the cache remember which commit the branch is at: last, so that a revision never names
    a partial snapshot. A cache that cannot be written remembers nothing, which is no error."""
    if cached_commit(hub_id) == commit:
        return
    ref = storage_of(hub_id.repo) / "refs" / hub_id.branch
    with contextlib.suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        aside = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
        aside.write_text(commit)
        os.replace(aside, ref)


def cached_commit(hub_id: HubId) -> str | None:
    """The commit that the cache knows for the id's revision."""
    if re.fullmatch(r"[0-9a-f]{40}", hub_id.branch):
        return hub_id.branch
    ref = storage_of(hub_id.repo) / "refs" / hub_id.branch
    commit = ref.read_text().strip() if ref.is_file() else ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Our progress is the only one, unless HF_HUB_DISABLE_PROGRESS_BARS=0 asks for the others."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled(_BARS):
        yield
        return
    disable_progress_bars(_BARS)
    try:
        yield
    finally:
        enable_progress_bars(_BARS)


def _through_library(repo: str, commit: str, name: str, count: Count, again: bool) -> str:
    """Downloads by ``huggingface_hub`` alone: small files, and large ones of its chunk storage."""
    import inspect

    from huggingface_hub import hf_hub_download

    extra: dict[str, Any] = {"force_download": again}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        extra["tqdm_class"] = _counter_class(count)
    return hf_hub_download(repo, name, revision=commit, **_OURS, **extra)


def _counter_class(count: Count) -> type:
    """What ``huggingface_hub`` takes for a progress bar, passing bytes on to `count`."""

    class Counter:
        def __init__(self, *args: Any, initial: int = 0, total: Any = None, **kwargs: Any):
            self.n, self.total = initial, total

        def update(self, n: int = 1) -> None:
            self.n += n
            count(self.n)

        def update_transfer(self, n: int) -> None:
            """Bytes on the wire: not those of the file."""

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None: ...
        def set_postfix_str(self, *args: Any, **kwargs: Any) -> None: ...
        def refresh(self, *args: Any, **kwargs: Any) -> None: ...
        def close(self) -> None: ...

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *exc: object) -> None: ...

    return Counter


class _Partial(io.FileIO):
    """The bytes of a file that came so far, under an exclusive lock; each write is counted."""

    def __init__(self, path: Path, count: Count):
        super().__init__(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
        self._count = count
        fcntl.flock(self, fcntl.LOCK_EX)
        self.seek(0, os.SEEK_END)
        count(self.tell())

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view.nbytes:
            view = view[super().write(view) :]
        self._count(self.tell())
        return memoryview(data).nbytes

    def sha256(self) -> str:
        digest = hashlib.sha256()
        self.seek(0)
        while piece := self.read(4 << 20):
            digest.update(piece)
        return digest.hexdigest()


def _into_blobs(repo: str, commit: str, name: str, count: Count) -> None:
    """Puts a large file among the cache's blobs, beginning where an earlier attempt broke off.

    Leaves files of the chunk storage, and servers whose ETag names no content, to the library.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(repo, name, revision=commit)
    meta = get_hf_file_metadata(url, timeout=TIMEOUT_S, **_OURS)
    by_content = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", meta.etag or "")
    if not by_content or meta.size is None or _in_chunk_storage(meta):
        return
    blob = storage_of(repo) / "blobs" / str(meta.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers(**_OURS)
    if urlsplit(meta.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is the hub's, not its storage's
    aside = blob.with_name(f"{blob.name}{_PARTIAL}")
    with _Partial(aside, count) as part:
        if blob.exists():  # another process finished it while this one waited for the lock
            return
        begun = part.tell()
        if begun > meta.size:
            part.truncate(0)
            begun = part.seek(0)
        if begun < meta.size:
            _receive(meta.location, part, headers, meta.size)
        os.fsync(part)
        if len(blob.name) == 64 and part.sha256() != blob.name:
            part.truncate(0)  # not unlinked: who waits for the lock has this file open
            raise CorruptFile(f"{name} of {repo}: what came is not what its checksum names")
        os.replace(aside, blob)


def _receive(url: str, part: _Partial, headers: dict[str, str], size: int) -> None:
    """Fills `part` up to `size` bytes; a connection that breaks is made anew while bytes come."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    while True:
        begun = part.tell()
        try:
            http_get(url, part, resume_size=begun, headers=headers, expected_size=size)
            return
        except HfHubHTTPError:
            raise
        except Exception as error:
            if part.tell() == begun or getattr(error, "errno", None) in _DISK:
                raise
            time.sleep(_PAUSE_S)


def _in_chunk_storage(meta: Any) -> bool:
    from huggingface_hub import utils

    available = getattr(utils, "is_xet_available", None)
    return getattr(meta, "xet_file_data", None) is not None and available and available()
