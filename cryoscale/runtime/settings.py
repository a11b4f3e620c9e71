"""Where and how an executor works; nothing here changes a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryoscale.errors import ConfigurationError
from cryoscale.runtime.memory import cpu_count
from cryoscale.runtime.probe import Guard

# By default OpenMP's threads spin while they wait. On cores that are shared (two engines, other users) a
# training step then took 2 to 30 times as long as on one thread.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class ExecutorSettings:
    """Where and how work runs; nothing here changes a result.

    Parameters
    ----------
    workers : int
        Processes; 0 means one per core (embedded) or as many as the cluster offers.
    threads_per_worker : int
        Threads that numerical libraries may use inside a worker. A worker runs one task at a time.
    threads_at_most : bool
        On a Ray cluster whose machines are all smaller, a worker has the cores of the largest one instead.
    memory_per_worker_bytes : int or None
        An embedded Dask worker above this is ended and its task lost; None sets no limit.
    gpus : int or None
        CUDA devices to share out among Ray workers; None means those of the cluster at `address`.
    gpus_per_worker : float or None
        CUDA devices of one Ray worker, a fraction shares one; None means 1 where there are GPUs, else 0.
    idle_release_s : float or None
        Ray workers of a cluster at `address` are given back after so long without a task; None keeps them.
    address : str or None
        A running cluster; None starts an embedded one that ends with this process.
    secrets : Path or None
        Folder with the certificates (Dask) and the token (Ray) that a running cluster asks for.
    start_timeout_s : float
        How long to wait for a first worker, at the start and whenever all have gone.
    no_progress_timeout_s : float
        How long to wait while tasks are in flight and none ends. Training counts as one task: leave hours.
    per_worker_in_flight : int
        Tasks handed to one worker at a time: one runs, the rest hide the latency.
    scratch : Path or None
        Folder for the engines' temporary files; None means the system's.
    guard : Guard or None
        What a worker must prove before its first task; None compares versions alone.
    """

    workers: int = 0
    threads_per_worker: int = 1
    threads_at_most: bool = False
    memory_per_worker_bytes: int | None = None
    gpus: int | None = 0
    gpus_per_worker: float | None = None
    idle_release_s: float | None = None
    address: str | None = None
    secrets: Path | None = None
    start_timeout_s: float = 120.0
    no_progress_timeout_s: float = 6 * 3600.0
    per_worker_in_flight: int = 2
    scratch: Path | None = None
    guard: Guard | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("workers", 0),
            ("threads_per_worker", 1),
            ("gpus", 0),
            ("per_worker_in_flight", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def local_workers(self) -> int:
        """Workers of an embedded engine: as asked, or as many as fit the cores."""
        return self.workers or max(1, cpu_count() // self.threads_per_worker)

    @property
    def embedded_gpu_share(self) -> float:
        """GPUs of one worker of an embedded Ray, in thousandths: as asked, or all of them shared fairly."""
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return int(min(1.0, (self.gpus or 0) / self.local_workers) * 1000) / 1000

    @property
    def ray_environment(self) -> dict[str, str]:
        """Environment in which Ray is imported and joined: where the token is, if there are secrets."""
        if self.secrets is None:
            return {}
        from cryoscale.runtime.secrets import Secrets

        return Secrets.open(self.secrets).ray_environment()

    @property
    def thread_environment(self) -> dict[str, str]:
        """Environment that keeps the libraries in a worker from starting a thread per core each."""
        threads = str(self.threads_per_worker)
        names = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "BLOSC", "VECLIB_MAXIMUM")
        return {
            **{f"{name}_NUM_THREADS": threads for name in names if name != "BLOSC"},
            "BLOSC_NTHREADS": threads,
            **PATIENT_THREADS,
            "ZARR_ASYNC__CONCURRENCY": "4",
            "ZARR_THREADING__MAX_WORKERS": threads,
        }
