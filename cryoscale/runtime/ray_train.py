"""One training on several workers, by Ray Train: who they are, where they meet, what follows when one dies.

::

    train_on_workers -> TorchTrainer -> controller -> worker 0 .. n-1: function(argument, TrainingWorker)
                                                        |  each opens the run itself and joins the others
                                                        +- worker 0 returns the result

Ray Train starts the workers together, gives them their devices, watches them, and ends all when one ends.
It retries nothing: attempts are counted by our controller, and the next one goes on from the checkpoint.
Two things of Ray Train are left out. Its process group listens on all interfaces of the machine, so the
function opens one itself (`learn.distributed.group_of`); and its checkpoints are not used, since the loop has
its own.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from cryoscale.errors import ConfigurationError, SurroundingsError
from cryoscale.runtime.environment import environment
from cryoscale.runtime.executor import ExecutorSettings
from cryoscale.runtime.ray_start import import_ray, quietly, start_embedded
from cryoscale.runtime.reaper import Reaper
from cryoscale.runtime.scratch import claim_folder, drop_folder

Argument = TypeVar("Argument")
Result = TypeVar("Result")

LOOPBACK = "127.0.0.1"
START_S = 300.0  # until every worker runs: each imports torch first

_RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a run stay what they are
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_S),
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(START_S),
}


@dataclass(frozen=True)
class TrainingWorker:
    """What a process is told that trains with others; `TrainingWorker()` is alone.

    Attributes
    ----------
    rank : int
        Its number, 0 to size - 1. Number 0 writes what is to be written, and returns the result.
    size : int
        How many they are.
    device : str
        Where it computes: "auto", "cpu" or "cuda:N".
    address : str
        Of this machine, where the others reach it: loopback if all are on one machine.
    """

    rank: int = 0
    size: int = 1
    device: str = "auto"
    address: str = LOOPBACK

    def from_first(self, make: Callable[[], str]) -> str:
        """Let worker 0 make a short text and give it to all; every worker must call it."""
        text = make() if self.rank == 0 else ""
        if self.size == 1:
            return text
        from ray.train.collective import broadcast_from_rank_zero

        return str(broadcast_from_rank_zero(text))


def train_on_workers(
    function: Callable[[Argument, TrainingWorker], Result],
    argument: Argument,
    *,
    workers: int,
    gpus_per_worker: float = 0.0,
    threads: int = 1,
) -> Result:
    """Run a training function on several workers at once, and give what worker 0 returns.

    Parameters
    ----------
    function : callable
        Of a module that the workers can import. Called as `function(argument, worker)` on each, in a thread.
    argument : object
        Pickled to each worker: a description of what to read, not the data.
    workers : int
        With one, the function is called here and no Ray is started.
    gpus_per_worker : float
        CUDA devices of each, at least 1 (nccl lets no two processes share one), or 0 to train on processors.
        One worker alone takes what is there ("auto").
    threads : int
        CPU threads of each worker.

    Returns
    -------
    result : object
        Of worker 0, pickled on its way here.

    Raises
    ------
    SurroundingsError
        A worker died or never came, or there is no room for so many. Nothing is tried again here.
    ConfigurationError
        This Ray is too old, or a number makes no sense.
    Exception
        What the function raised, of the worker with the lowest number if several did.

    Notes
    -----
    Where Ray runs in this process already (a stage inside a worker of the model engine), the workers are its
    actors. If that is the embedded Ray of the run, they share the processors and GPUs with the actors that
    hold these: the caller waits meanwhile, so give `threads` as its threads over `workers`. On a cluster so
    much must be free beside the model engine (`execution.ray_workers`), or nobody comes within five minutes.
    Where there is no Ray yet, an embedded one is started, on loopback, and ended again.
    """
    if workers < 1 or threads < 1 or not (gpus_per_worker == 0 or gpus_per_worker >= 1):
        raise ConfigurationError(
            f"Cannot train on {workers} workers with {threads} threads and {gpus_per_worker} GPUs each."
        )
    if workers == 1:
        return function(argument, TrainingWorker())
    return _train(function, argument, workers, gpus_per_worker, threads)


def _train(
    function: Callable[[Argument, TrainingWorker], Result],
    argument: Argument,
    workers: int,
    gpus_per_worker: float,
    threads: int,
) -> Result:
    settings = ExecutorSettings(
        workers=workers, threads_per_worker=threads, gpus=-int(-gpus_per_worker * workers // 1)
    )
    with environment(_RAY_TRAIN), _some_ray(settings) as (scratch, owned):
        bundle = _bundle(workers, threads, gpus_per_worker, owned=owned)
        config = {"function": function, "argument": argument, "cuda": gpus_per_worker > 0}
        with quietly():
            trainer = _trainer(config, workers, bundle, settings.thread_environment, scratch)
        try:
            with quietly():
                answer = trainer.fit()
        except Exception as error:
            raise _explained(error, workers) from error
    result: Result = pickle.loads(answer.return_value)  # it comes from our own worker
    return result


# -- the Ray that carries it ---------------------------------------------------------------------------------


@contextmanager
def _some_ray(settings: ExecutorSettings) -> Iterator[tuple[Path, bool]]:
    """Take the Ray of this process, or start one for a while; yields a scratch folder, and which it is."""
    ray = import_ray(embedded=True)
    folder, reaper = claim_folder(None, "cryoscale-"), None
    owns = not ray.is_initialized()
    try:
        if owns:
            reaper = Reaper(folder) if sys.platform == "linux" else None
            try:
                start_embedded(settings, folder)
            except Exception as error:
                raise SurroundingsError(
                    f"Ray did not start for a training ({type(error).__name__}: {error})."
                ) from error
        yield folder, owns
    finally:
        if owns:
            with quietly(), suppress(Exception):
                ray.shutdown()
        if reaper is not None:
            reaper.dismiss()
        drop_folder(folder)


def _bundle(workers: int, threads: int, gpus: float, *, owned: bool) -> dict[str, float]:
    """Say what each worker asks Ray for."""
    import ray

    wanted = {"CPU": float(threads)} | ({"GPU": gpus} if gpus else {})
    if owned:
        return wanted
    if [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]] == [LOOPBACK]:
        # The embedded Ray of this run: its actors hold all that there is. One of them waits here, and the
        # others have little to do before this fit ends. A byte of memory is always to be had.
        return {"CPU": 0.0, "memory": 1.0}
    there = ray.cluster_resources()
    short = [name for name, amount in wanted.items() if there.get(name, 0.0) < amount * workers]
    if short:
        need = ", ".join(f"{wanted[name] * workers:g} {name}" for name in short)
        have = ", ".join(f"{there.get(name, 0.0):g} {name}" for name in short)
        raise ConfigurationError(
            f"Training on {workers} workers needs {need}; the whole Ray cluster has {have}.",
            remedy="Train on fewer workers.",
        )
    return wanted


# -- Ray Train -----------------------------------------------------------------------------------------------


def _trainer(
    config: dict[str, Any],
    workers: int,
    bundle: dict[str, float],
    variables: Mapping[str, str],
    scratch: Path,
) -> Any:
    import ray
    from ray import train
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    if "return_value" not in {field.name for field in fields(train.Result)}:
        raise ConfigurationError(
            f"Ray {ray.__version__} is too old to train on several workers.",
            remedy="Install the version that constraints.txt names, or train on one.",
        )

    class NoProcessGroup(Backend):  # type: ignore[misc]
        """Devices are shared out as Ray Train does it; the processes find each other by `from_first`."""

        share_cuda_visible_devices = True

    class Config(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Backend]:
            return NoProcessGroup

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Ctrl-C to the driver of the run."""

    no_retries = {f.name: 0 for f in fields(train.FailureConfig) if f.name in _RETRIES}
    return Trainer(
        _in_worker,
        train_loop_config=config,
        torch_config=Config(),
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu=bool(bundle.get("GPU")), resources_per_worker=bundle
        ),
        run_config=train.RunConfig(
            name="training",
            storage_path=str(scratch),
            failure_config=train.FailureConfig(**no_retries),
            worker_runtime_env={"env_vars": dict(variables)},
        ),
    )


_RETRIES = ("max_failures", "controller_failure_limit", "max_preemption_failures")


def _in_worker(config: dict[str, Any]) -> Any:
    """Run on each worker: find out who it is, and train."""
    import ray
    from ray import train

    context = train.get_context()
    size = context.get_world_size()
    together = context.get_local_world_size() == size
    device = _cuda(context.get_local_rank()) if config["cuda"] else "cpu"
    address = LOOPBACK if together else ray.util.get_node_ip_address()
    worker = TrainingWorker(context.get_world_rank(), size, device, address)
    result = config["function"](config["argument"], worker)
    # Ray Train refuses tensors in what comes back, but not bytes.
    return pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL) if worker.rank == 0 else None


def _cuda(local_rank: int) -> str:
    """Choose the device that Ray gave to this worker, or one by its number where devices are shared."""
    import ray
    import torch
    from ray.train.torch import get_device

    if not torch.cuda.is_available():
        raise SurroundingsError("A training worker was to have a GPU, and torch finds none.")
    if not ray.get_gpu_ids() and local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"There are {torch.cuda.device_count()} GPUs here, and worker {local_rank} wants one of its own.",
            remedy="Train on as many workers as there are GPUs.",
        )
    device = get_device() if ray.get_gpu_ids() else torch.device("cuda", local_rank)
    torch.cuda.set_device(device)  # else every worker would take memory of the first one
    return f"cuda:{device.index or 0}"


def _explained(error: Exception, workers: int) -> Exception:
    """Find what to tell of a training that failed: what the function raised, or which worker died."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    raised = {rank: e for rank, e in sorted(failures.items()) if not _death(e)}
    for other in raised.values():
        if not isinstance(other, SurroundingsError):  # which the others raise when this one is gone
            return other
    dead = [rank for rank, e in failures.items() if _death(e)]
    if dead or not raised:
        who = f"worker {min(dead)} of {workers} died" if dead else "the workers did not come or were lost"
        cause = failures[min(dead)] if dead else error
        return SurroundingsError(
            f"A training on {workers} workers ended: {who} ({_short(cause)}).",
            remedy="Look for a lack of memory; the next attempt goes on from the last checkpoint.",
        )
    return next(iter(raised.values()))


def _death(error: Exception) -> bool:
    return any(base.__module__.startswith("ray.") for base in type(error).__mro__)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
