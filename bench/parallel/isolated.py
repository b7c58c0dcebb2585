"""One process a question: nothing earlier is in it, and its end is an answer too.

Processes are forked from a server that has loaded the libraries and done nothing else, so that they
start in milliseconds, with no thread of torch's and no CUDA context from before."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.errors import UserError, out_of_memory
from bench.record import Status

Report = Callable[[Mapping[str, Any]], None]
"""Says what is known so far; what was told is kept, however the process ends."""


@dataclass
class Outcome:
    """What became of the work."""

    status: Status = "ok"
    reason: str | None = None
    """Why it is not `ok`."""
    reported: dict[str, Any] = field(default_factory=dict)


def run_isolated(
    work: Callable[..., None],
    *arguments: Any,
    limit_s: float,
    preload: Sequence[str] = (),
) -> Outcome:
    """Do work(tell, *arguments) in a process of its own; never raises for what happens there.

    The status is `oom` where memory ran out: the card's, a limit of this process, or the system's,
    whose killer leaves no other trace; `failed` for any other end, the time limit included.

    Args:
        work: a function of a module; what it tells must survive pickling.
        limit_s: after so many seconds the process is ended.
        preload: modules that the server loads before it forks; those of the first call count.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, work, arguments))
    kills = _kills()
    process.start()
    there.close()
    outcome = Outcome()
    end = time.monotonic() + limit_s
    finished = late = False
    try:
        while not finished and not late:
            late = not here.poll(max(0.0, end - time.monotonic()))
            if late:
                break
            kind, content = here.recv()
            if kind == "told":
                outcome.reported |= content
            else:
                outcome.status, outcome.reason = content
                finished = True
    except EOFError:
        pass
    finally:
        if late:
            process.kill()
        process.join()
        here.close()
    if late:
        outcome.status, outcome.reason = "failed", f"not done within {limit_s:g} s"
    elif not finished:
        outcome.status, outcome.reason = _end(process.exitcode, kills)
    return outcome


def _work(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In the new process."""
    status: Status = "ok"
    reason = None
    try:
        work(lambda content: pipe.send(("told", dict(content))), *arguments)
    except UserError as error:
        status, reason = "failed", str(error)
    except Exception as error:
        status = "oom" if out_of_memory(error) else "failed"
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    pipe.send(("end", (status, reason)))


def _end(exitcode: int | None, kills: int | None) -> tuple[Status, str]:
    """What a process died of that could not say so itself."""
    if exitcode != -signal.SIGKILL:
        name = f"signal {-exitcode}" if exitcode and exitcode < 0 else f"exit code {exitcode}"
        return "failed", f"the process ended with {name}"
    now = _kills()
    if kills is None or now is None:
        return "oom", "killed by the system, most likely for memory"
    if now > kills:
        return "oom", "killed by the system for memory"
    return "failed", "killed by somebody (signal 9), not by the system for memory"


def _kills() -> int | None:
    """Processes that the kernel has killed for memory so far; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None


def host_limit_bytes() -> int:
    """Memory that a process here can come to: the machine's, or less where a limit is set."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _first_line(Path(path))
        if text.isdigit():
            limits.append(int(text))
    if os.name == "posix":
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                limits.append(soft)
    return min(limits)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().split("\n", 1)[0]
    except OSError:
        return ""
