"""Every error musespark raises on purpose derives from :class:`Error`; and what it warns of."""

from __future__ import annotations


class Error(Exception):
    """Base of all musespark errors."""


class UnsupportedModel(Error):  # noqa: N818 - public name
    """The model is of a kind this version cannot run; the message names the part that lacks."""


class CorruptFile(Error, ValueError):  # noqa: N818
    """A model, packed or session file is truncated, inconsistent or hostile; names the field."""


class InvalidRequest(Error, ValueError):  # noqa: N818
    """An argument is wrong; the message names it, what was given and what is allowed."""


class ContextOverflow(InvalidRequest):
    """The request does not fit the context; carries the numbers.

    Attributes: ``needed`` and ``limit``, both in tokens.
    """

    def __init__(self, message: str, *, needed: int | None = None, limit: int | None = None):
        super().__init__(message)
        self.needed = needed
        self.limit = limit


class WrongPassphrase(InvalidRequest):
    """The passphrase is not the one that the file was encrypted with."""


class MissingLibrary(Error, ImportError):  # noqa: N818
    """What was asked needs a library that is not installed; the message says which extra has it."""


class SandboxUnavailable(Error):  # noqa: N818
    """This system does not let a program be shut in (namespaces, limits); the message says what."""


class ToolServerFailed(Error):  # noqa: N818
    """An MCP server could not be started or reached, broke off, or says that its tool failed; the
    message names the server and the tool."""


class Cancelled(Error):  # noqa: N818
    """The request was cancelled: its model was closed while somebody waited for it."""


class DeadlineExceeded(Error, TimeoutError):  # noqa: N818
    """A deadline or time budget passed."""


class HubUnavailable(Error, ConnectionError):  # noqa: N818
    """A model hub cannot be reached, or broke off; nothing was cached that could stand in for it.

    Loading again takes up a download where it was left.
    """


class AccessDenied(Error, PermissionError):  # noqa: N818
    """A hub refuses the model to this account; the message says how to ask and to log in."""


class MemoryBudgetExceeded(Error, MemoryError):  # noqa: N818
    """An allocation would pass the memory budget; names the bytes wanted, used and allowed."""


class SavedWithoutCache(UserWarning):
    """A session was saved without keys and values, for running requests had needed their memory:
    who resumes it goes on with the same results, and computes the conversation again first."""
