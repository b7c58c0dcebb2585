"""The one exception that is meant for a person, and what tells that memory ran out."""


class UserError(Exception):
    """Something a user can mend: the message is one sentence that names what is wrong and what to
    do.

    Stages print it without a traceback and exit with status 1 (`bench.cli.main`); every other
    exception is a bug of ours and keeps its traceback."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the card or on the host."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # By its name: whoever asks need not have loaded torch.
    words = ("can't allocate memory", "bad_alloc", "not enough memory")
    return type(error).__name__ == "OutOfMemoryError" or any(one in str(error) for one in words)
