"""The exception for errors that a user can fix, the status of finished work, and the detection of
out-of-memory errors."""

import re
from typing import Literal

Status = Literal["ok", "oom", "failed"]
"""How work ended; `oom` means out of memory."""


class UserError(Exception):
    """An error that the user can fix. The message is one sentence that says what is wrong and what to do.

    Stages print it without a traceback and exit with status 1 (`bench.cli.main`). Any other exception
    is a bug and keeps its traceback."""

    def __init__(self, message: str) -> None:
        """Control characters in the message, for instance from file names, are escaped."""
        parts = (
            one if one.isprintable() else one.encode("unicode_escape").decode() for one in message
        )
        super().__init__("".join(parts))


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory, on the GPU or the CPU, or a size that overflows in torch
    or numpy."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError | TypeError | ValueError | OverflowError):
        return False
    words = (
        "can't allocate memory|bad_alloc|not enough memory|calculation overflowed|"
        "Overflow when unpacking|too large to convert|too big to convert|array is too big"
    )
    # By name, because the caller may not have imported torch.
    return type(error).__name__ == "OutOfMemoryError" or bool(re.search(words, str(error)))
