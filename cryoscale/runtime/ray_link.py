"""The tie of this process to Ray: an embedded one is started, or a cluster joined; watched, and ended."""

from __future__ import annotations

import importlib
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from cryoscale.errors import RefusedError
from cryoscale.runtime.environment import environment
from cryoscale.runtime.ray_actors import Actor, end_ray, unreachable
from cryoscale.runtime.ray_nodes import SILENT_S, NodeWatch
from cryoscale.runtime.ray_start import (
    LONGEST_SCRATCH,
    import_ray,
    join_cluster,
    leave_cluster,
    start_embedded,
)
from cryoscale.runtime.reaper import Reaper
from cryoscale.runtime.scratch import claim_folder, drop_folder

if TYPE_CHECKING:
    from pathlib import Path

    from cryoscale.runtime.executor import ExecutorSettings

# Ray ends a process whose head has been silent for 60 s, whatever it is doing: no `finally` runs, and the
# lock of the run stays. We decide ourselves, so Ray gets three years.
_NEVER = {"RAY_gcs_rpc_server_reconnect_timeout_s": "100000000"}
_CLOSE_S = 15.0


class RayLink:
    """What this process holds of Ray, and ends again.

    Attributes
    ----------
    joined : bool
        Whether Ray can be asked for actors.
    watch : NodeWatch or None
        Asks a running cluster for its machines; None for an embedded Ray.
    """

    def __init__(self) -> None:
        self.joined = self._owns = False
        self.watch: NodeWatch | None = None
        self._folder: Path | None = None
        self._reaper: Reaper | None = None
        self._ending: threading.Thread | None = None

    @property
    def silent_s(self) -> float:
        """For how long the head of a cluster has not answered, seconds."""
        return self.watch.silent_s if self.watch is not None else 0.0

    def start(self, settings: ExecutorSettings) -> None:
        """Start an embedded Ray, unless this process has one."""
        ray = import_ray(embedded=True)
        if not ray.is_initialized():
            self._owns = True  # also of one that starts half: `close` must end it
            base = settings.scratch
            short = base is not None and len(str(base)) <= LONGEST_SCRATCH
            self._folder = claim_folder(base if short else None, "cryoscale-")
            self._reaper = Reaper(self._folder) if sys.platform == "linux" else None
            start_embedded(settings, self._folder)
        self.joined = True

    def reach(self, settings: ExecutorSettings) -> str:
        """Try once to join the cluster; return an empty text, or why not yet.

        Raises
        ------
        RefusedError, TimeoutError
            What waiting does not mend.
        """
        assert settings.address is not None
        if self._ending is not None and self._ending.is_alive():
            return "The connection to a head that is gone has not ended yet."
        if problem := unreachable(settings.address):
            return problem
        with environment({**settings.ray_environment, **_NEVER}):
            ray = import_ray(embedded=False)
            if not ray.is_initialized():
                with suppress(Exception):  # read at the first import, which may have been somebody else's
                    importlib.import_module("ray._raylet").Config.initialize("")
                self._owns = True
                try:
                    join_cluster(settings.address, settings.start_timeout_s)
                except (RefusedError, TimeoutError):
                    raise
                except Exception as error:  # a head that is just starting refuses in many ways
                    return f"It cannot be joined ({type(error).__name__}: {error})"
        self.joined, self.watch = True, NodeWatch()
        return ""

    def close(self, actors: list[Actor]) -> None:
        """End the actors, and what `start` or `reach` started; safe to call again."""
        silent = self.silent_s > SILENT_S
        if self.watch is not None:
            self.watch.close()
        owns, self._owns, self.joined, self.watch = self._owns, False, False, None
        if "ray" in sys.modules:
            # A cluster whose head is gone answers nothing: do not wait for it for ever.
            self._ending = threading.Thread(target=end_ray, args=(actors, owns), daemon=True)
            self._ending.start()
            self._ending.join(_CLOSE_S if silent else None)
        if owns:
            leave_cluster()
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.dismiss()
        folder, self._folder = self._folder, None
        if folder is not None:
            drop_folder(folder)
