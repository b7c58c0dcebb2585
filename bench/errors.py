"""The one exception that is meant for a person."""


class Refusal(Exception):
    """Something a user can mend: the message is one sentence that names what is wrong and what to
    do.

    Stages print it without a traceback and exit with status 1 (`bench.stage.main`); every other
    exception is a bug of ours and keeps its traceback."""
