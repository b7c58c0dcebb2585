"""Where tasks run: Ray, or Slurm through submitit."""

import contextlib
import hashlib
import importlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.cluster import worker
from bench.cluster.plan import Task
from bench.errors import UserError
from bench.files import write_bytes

Job = dict[str, Any]
"""What `worker.perform` gets."""
EXTRA = "it comes with the extra `cluster`: `pip install 'glnet-bench[cluster]'`"
SCRIPTS = Path(".dvc/tmp/slurm")
MINUTES = 24 * 60
"""Of a job, if sbatch's `time` is not given."""
SHARED_FOLDER_S = 5


class Engine(Protocol):
    """A service that runs `worker.perform` somewhere."""

    workers: int
    """Tasks at once."""
    machines: int
    """Tasks at once that each have a machine of their own."""

    def start(self, jobs: Sequence[tuple[Task, Job]]) -> list[Any]:
        """Submit tasks; returns a handle for each."""

    def ended(self, handles: Sequence[Any]) -> list[Any]:
        """Those that have ended, after a second at most."""

    def result(self, handle: Any) -> dict[str, Any]:
        """What the task returned; any exception: its worker was lost."""

    def cancel(self, handles: Sequence[Any]) -> None:
        """End these tasks."""

    def close(self) -> None:
        """Leave the service."""


def load(name: str) -> Any:
    """A module of the optional extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: {EXTRA}.") from None


class Ray:
    """A Ray cluster: here, or one that is there already."""

    def __init__(
        self,
        address: str,
        workers: int,
        code: bytes,
        threads: int,
        gpus: bool = True,
        share: Callable[[str], float] = lambda model: 1.0,
    ) -> None:
        """Start it, or connect to it.

        Args:
            address: `local`, `auto` or `ray://HOST:PORT`.
            workers: of a local one.
            code: for `worker.perform`.
            threads: processors of a task.
            gpus: whether tasks use them where there are some.
            share: of a GPU that the training of a model needs, 0..1.

        Raises:
            UserError: it cannot be reached, or none of its machines has enough processors.
        """
        self._ray = load("ray")
        self._ray.cloudpickle.register_pickle_by_value(worker)
        here = {
            "num_cpus": workers * threads,
            "include_dashboard": False,
            "_system_config": {"worker_niceness": 0},  # as `dvc repro` runs stages
        }
        try:
            self._ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                **(here if address == "local" else {}),
            )
        except Exception as error:  # also a plain one, where a busy machine takes more than 30 s
            self._ray.shutdown()
            reason = " ".join(str(error).split())[:150].rstrip(".")
            raise UserError(
                f"There is no Ray cluster at {address} ({reason}): start it, or try again if this "
                "machine is busy."
            ) from None
        self._code = self._ray.put(code)
        self._crowded = address == "local" and workers * threads > (os.cpu_count() or 1)
        self._cpus, self._share = threads, share
        nodes = [one["Resources"] for one in self._ray.nodes() if one["Alive"]]
        wants_gpu = gpus and any(one.get("GPU") for one in nodes)
        sizes = [int(one.get("CPU", 0)) for one in nodes if one.get("GPU") or not wants_gpu]
        self._gpus, self._all_cpus = int(wants_gpu), max(sizes, default=0)
        self.workers = sum(size // self._cpus for size in sizes)
        self.machines = sizes.count(self._all_cpus)
        if not self.workers:
            raise UserError(
                f"No machine of the Ray cluster has {self._cpus} processors, as compute.threads asks."
            )

    def start(self, jobs: Sequence[tuple[Task, Job]]) -> list[Any]:
        """As `Engine`."""
        return [
            self._ray.remote(worker.perform)
            .options(
                # All processors of a machine: nothing else starts there.
                num_cpus=self._all_cpus if task.alone else self._cpus,
                num_gpus=self._gpus * (self._share(task.model) if task.model else 1),
                max_retries=0,
                name=task.name,
            )
            .remote(self._code, job if task.alone else self._without_spinning(job))
            for task, job in jobs
        ]

    def _without_spinning(self, job: Job) -> Job:
        """A task whose threads do not spin while they wait, where tasks share processors."""
        waits = {"OMP_WAIT_POLICY": "passive"} if self._crowded else {}
        return job | {"environment": waits | job.get("environment", {})}

    def ended(self, handles: Sequence[Any]) -> list[Any]:
        """As `Engine`."""
        done, _ = self._ray.wait(list(handles), num_returns=1, timeout=1)
        return list(done)

    def result(self, handle: Any) -> dict[str, Any]:
        """As `Engine`."""
        return dict(self._ray.get(handle))

    def cancel(self, handles: Sequence[Any]) -> None:
        """As `Engine`."""
        for handle in handles:
            with contextlib.suppress(Exception):  # it may be lost
                self._ray.cancel(handle, force=True)

    def close(self) -> None:
        """As `Engine`."""
        self._ray.shutdown()


class Slurm:
    """A Slurm cluster whose machines see this folder."""

    def __init__(
        self,
        workers: int,
        code: bytes,
        threads: int,
        options: Mapping[str, Any],
        work: str = "",
    ) -> None:
        """Nothing is submitted yet.

        Args:
            workers: jobs at once.
            code: for `worker.perform`.
            threads: processors of a task.
            options: of sbatch, as submitit names them, for instance `partition`.
            work: of two starts in this folder with the same, the second ends the first.
        """
        self._submitit = load("submitit")
        load("cloudpickle").register_pickle_by_value(worker)
        self.workers = self.machines = workers
        name = "glnet-" + hashlib.sha256(f"{Path.cwd()}{work}".encode()).hexdigest()[:8]
        self._options: dict[str, Any] = {
            "job_name": name,
            "time": MINUTES,
            "cpus_per_task": threads,
            "array_parallelism": workers,
            "stderr_to_stdout": True,
            **options,
        }
        self._code = SCRIPTS.resolve() / f"{name}.tar"
        write_bytes(self._code, code)

    def begin(self) -> None:
        """Cancel what an earlier start has left, which may have been killed.

        Raises:
            UserError: there is no Slurm here.
        """
        try:
            _slurm("scancel", "--me", "--name", self._options["job_name"])
            self._executor = self._submitit.SlurmExecutor(SCRIPTS.resolve())
        except (OSError, RuntimeError, subprocess.CalledProcessError):
            raise UserError(
                "Slurm does not answer here (`squeue`): start this on a machine from which jobs are "
                "submitted, or add --dry-run to see the scripts."
            ) from None

    def scripts(self, tasks: Sequence[Task]) -> Iterator[str]:
        """The sbatch script of each group of tasks that need the same."""
        make = load("submitit.slurm.slurm")._make_sbatch_string
        for options, group in self._alike(tasks):
            names = ", ".join(task.name for task in group)
            count = {"map_count": len(group)} if len(group) > 1 else {}
            text = make(command="...", folder=SCRIPTS, **self._options, **options, **count)
            yield f"# {names}\n{text}"

    def _alike(self, tasks: Sequence[Task]) -> Iterator[tuple[dict[str, Any], list[Task]]]:
        """Tasks that need the same, and what that is."""
        for alone in (False, True):
            if group := [task for task in tasks if task.alone is alone]:
                yield {"exclusive": True} if alone else {}, group

    def start(self, jobs: Sequence[tuple[Task, Job]]) -> list[Any]:
        """As `Engine`: an array for those that need the same."""
        known = {task.name: job for task, job in jobs}
        found: dict[str, Any] = {}
        for options, group in self._alike([task for task, _ in jobs]):
            self._executor.parameters.clear()
            self._executor.update_parameters(**self._options, **options)
            code, wanted = [str(self._code)] * len(group), [known[task.name] for task in group]
            handles = self._executor.map_array(worker.perform, code, wanted)
            found |= dict(zip((task.name for task in group), handles, strict=True))
        return [found[name] for name in known]

    def ended(self, handles: Sequence[Any]) -> list[Any]:
        """As `Engine`. submitit asks `sacct`, which not every cluster has."""
        time.sleep(1)
        there = set(_slurm("squeue", "--me", "--array", "--noheader", "--format=%i").split())
        return [one for one in handles if one.job_id not in there]

    def result(self, handle: Any) -> dict[str, Any]:
        """As `Engine`."""
        for _ in range(SHARED_FOLDER_S):  # until a shared folder shows what another machine wrote
            if handle.paths.result_pickle.exists():
                return dict(handle.result())
            time.sleep(1)
        raise RuntimeError(f"job {handle.job_id} ended without a result")

    def cancel(self, handles: Sequence[Any]) -> None:
        """As `Engine`."""
        for handle in handles:
            handle.cancel()

    def close(self) -> None:
        """As `Engine`: there is nothing to leave."""


def _slurm(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
