"""The exception for errors that a user can fix, how work ends, and the detection of out-of-memory
errors."""

from typing import Literal

Status = Literal["ok", "oom", "failed"]
"""How work ended; `oom`: memory ran out."""


class UserError(Exception):
    """An error that the user can fix; the message is one sentence that says what is wrong and what
    to do.

    Stages print it without a traceback and exit with status 1 (`bench.cli.main`). Every other
    exception is a bug and keeps its traceback."""

    def __init__(self, message: str) -> None:
        """Names of files and keys in it may hold line ends and control characters: these are
        escaped."""
        parts = (
            one if one.isprintable() else one.encode("unicode_escape").decode() for one in message
        )
        super().__init__("".join(parts))


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on the GPU or on the host, or that a size is
    beyond what torch or numpy counts with."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError | TypeError | ValueError | OverflowError):
        return False
    words = (
        *("can't allocate memory", "bad_alloc", "not enough memory", "calculation overflowed"),
        *(
            "Overflow when unpacking",
            "too large to convert",
            "too big to convert",
            "array is too big",
        ),
    )
    # By name, because the caller may not have imported torch.
    return type(error).__name__ == "OutOfMemoryError" or any(one in str(error) for one in words)
