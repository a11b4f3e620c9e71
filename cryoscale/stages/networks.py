"""Open a trained network of the run as an engine: loaded once per process, whatever the tomogram."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.errors import StateError
from cryoscale.runtime.memory import cpu_count

if TYPE_CHECKING:
    from torch import nn

    from cryoscale.inference.engine import Engine, Precision
    from cryoscale.models.invariants import ShellInvariants

BATCH = 64  # patches; fixed, so that results do not depend on how rows or windows fall into blocks
AT_ONCE = 4  # items that OpenVINO computes at a time on each core
KEPT = 3  # networks that stay loaded in a process
BATCH_VOXELS = 64 * 40**3  # of a batch at most
ALONE_VOXELS = 64**3  # items from this size on come one by one


def worker_threads() -> int:
    """Return the cores that this worker may use: its share as its engine set it, else all of the process."""
    share = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(share) if share.isdigit() and int(share) > 0 else cpu_count()


class Network:
    """An engine that several users in one process share; calls run one after the other.

    A call that fails takes the engine out of the cache: a broken device must not meet the next attempt.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self.users = 0
        self.broken = False

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one result."""
        return self._engine.output_shape

    def run(self, items_N: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Compute every item; see `cryoscale.inference.engine.Engine.run`."""
        with self._lock:
            try:
                return self._engine.run(items_N)
            except BaseException:
                self.broken = True
                raise

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


@dataclass
class NetworkCache:
    """The networks that a process holds loaded, the last few used; those in use are never closed."""

    limit: int = KEPT
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _entries: dict[str, Network] = field(default_factory=dict)  # in the order of their last use

    @contextlib.contextmanager
    def borrow(self, key: str, load: Callable[[], Engine], *, alone: str = "") -> Iterator[Network]:
        """Yield the network of a key, loading it when this process does not hold it.

        Idle ones whose keys begin with `alone` are closed first, if that is given: those of large windows,
        which a plan promises to hold one of.
        """
        with self._lock:  # also while loading: two at once would load twice
            if alone:
                idle = [k for k, network in self._entries.items() if not network.users]
                for other in [k for k in idle if k != key and k.startswith(alone)]:
                    self._entries.pop(other).close()
            network = self._entries.pop(key, None)
            if network is None or network.broken:
                network = Network(load())
            self._entries[key] = network
            network.users += 1
            self._trim()
        try:
            yield network
        finally:
            with self._lock:
                network.users -= 1
                if network.broken and self._entries.get(key) is network:
                    del self._entries[key]
                if self._entries.get(key) is not network and not network.users:
                    network.close()
                self._trim()

    def _trim(self) -> None:
        idle = [key for key, network in self._entries.items() if not network.users]
        for key in idle[: max(0, len(self._entries) - self.limit)]:
            self._entries.pop(key).close()

    def close(self) -> None:
        """Close what nobody uses."""
        with self._lock:
            for key in [key for key, network in self._entries.items() if not network.users]:
                self._entries.pop(key).close()


CACHE = NetworkCache()


def _open(
    access: Access,
    name: str,
    kind: str,
    shape: tuple[int, ...],
    wrap: Callable[[nn.Module], nn.Module],
    *,
    precision: Precision = "float32",
) -> contextlib.AbstractContextManager[Network]:
    def load(module: nn.Module, threads: int) -> Engine:
        from cryoscale.inference.engine import open_engine

        return open_engine(wrap(module), input_shape=shape, batch=BATCH, threads=threads, precision=precision)

    return _borrow(access, name, [kind, precision, *shape], load)


def _borrow(
    access: Access,
    name: str,
    what: Sequence[str | int],
    load_engine: Callable[[nn.Module, int], Engine],
    *,
    alone: str = "",
) -> contextlib.AbstractContextManager[Network]:
    model, threads = access.model(name), worker_threads()
    card = model.card
    added = card.get("invariants", {})
    key = [*what, card["weights_sha256"], card["architecture"], added, threads, os.getpid()]

    def load() -> Engine:
        from cryoscale.models.registry import build

        module = build(card["architecture"])
        module.load_state_dict(model.load())
        return load_engine(module, threads)

    return CACHE.borrow(json.dumps(key, sort_keys=True), load, alone=alone)


def open_encoder(access: Access) -> contextlib.AbstractContextManager[Network]:
    """Open the encoder: patches (N, 1, Z, Y, X) to encodings (N, F): the code, then invariants if any."""
    from cryoscale.inference.wrappers import EncoderOnly, EncoderWithInvariants

    box = access.config.patch.box
    added = access.model("encoder").card.get("invariants")

    def wrap(module: nn.Module) -> nn.Module:
        if not added:
            return EncoderOnly(module)
        return EncoderWithInvariants(module, invariants_of(added, box), added["gain"])

    precision = access.config.encoder.inference_precision
    return _open(access, "encoder", "encoder", (1, *box), wrap, precision=precision)


def invariants_of(added: Mapping[str, Any], box: Sequence[int]) -> ShellInvariants:
    """Build the invariants that a model card describes: its numbers, not today's defaults.

    Parameters
    ----------
    added : mapping
        `invariants` of the card.
    box : three ints
        Extent of a patch, voxels.

    Raises
    ------
    StateError
        The card asks for others than this version computes.
    """
    from cryoscale.models.invariants import ShellInvariants

    shells = {key: added[key] for key in ("shell_voxels", "width_voxels") if key in added}
    module = ShellInvariants(box, int(added["degrees"]), **shells)
    if (added["name"], int(added["count"])) != ("shell_invariants", module.count):
        raise StateError(
            f"the card of the encoder asks for {added['count']} {added['name']}; "
            f"this version computes {module.count} shell_invariants in patches of {tuple(box)} voxels.",
            remedy="Encode with the version of cryoscale that trained the encoder, or train it again.",
        )
    return module


def network_bytes(access: Access, voxels: int, channels: int) -> int:
    """Bound what a network on patches takes once it runs: on CPUs each core computes items of its own.

    Parameters
    ----------
    access : Access
        Its `[execution]` table says how many threads a worker has; as many as this machine's cores, if not.
    voxels : int
        Of a patch.
    channels : int
        Of the network's first layer, the widest in bytes: its result, what is made of it, and one to spare.
    """
    threads = access.config.execution.ray_threads or max(4, cpu_count())
    items = max(BATCH, AT_ONCE * threads)
    return 4 * voxels * (3 * items * channels + 2 * BATCH * threads)  # the second: inputs of whole batches


def encoding_width(card: Mapping[str, Any]) -> int:
    """Return how many numbers an encoding has: those of the code, and the invariants."""
    return int(card["architecture"]["dimension"]) + int(card.get("invariants", {}).get("count", 0))


def invariants_bytes(card: Mapping[str, Any], box: Sequence[int]) -> int:
    """Bound what the invariants of an encoder take once it runs: their basis, twice while it is loaded."""
    from cryoscale.models.invariants import basis_bytes

    added = card.get("invariants")
    return 2 * basis_bytes(box, int(added["count"]), int(added["degrees"])) if added else 0


def expected_invariants(box: Sequence[int]) -> dict[str, Any]:
    """Foretell what the card of an untrained encoder will say of its invariants, but for the gain."""
    from cryoscale.models import invariants as defaults

    return {
        "name": "shell_invariants",
        "degrees": defaults.DEGREES,
        "shell_voxels": defaults.SHELL_VOXELS,
        "width_voxels": defaults.WIDTH_VOXELS,
        "count": defaults.invariant_count(box),
    }


def open_decoder(access: Access) -> contextlib.AbstractContextManager[Network]:
    """Open the decoder: encodings (N, F) to patches (N, 1, Z, Y, X)."""
    from cryoscale.inference.wrappers import DecoderOnly

    card = access.model("encoder").card
    dimension = int(card["architecture"]["dimension"])
    precision = access.config.encoder.inference_precision
    shape = (encoding_width(card),)
    return _open(
        access, "encoder", "decoder", shape, lambda m: DecoderOnly(m, dimension), precision=precision
    )


def open_segmenter(
    access: Access, face: Literal["weighted", "background"]
) -> contextlib.AbstractContextManager[Network]:
    """Open the segmenter on patches: (N, 1, Z, Y, X) to weighted probabilities (N, C, Z, Y, X).

    Parameters
    ----------
    face : {"weighted", "background"}
        Probabilities times `cryoscale.ops.blend.weight_window` of the box, of all classes or of the
        background alone (C = 1).
    """
    import torch

    from cryoscale.inference.dense import WeightedOf
    from cryoscale.ops.blend import weight_window

    box = access.config.patch.box

    def wrap(module: nn.Module) -> nn.Module:
        return WeightedOf(module, torch.from_numpy(weight_window(box)), background_only=face == "background")

    return _open(access, "segmenter", face, (1, *box), wrap)


def open_labeller(access: Access, window: Sequence[int]) -> contextlib.AbstractContextManager[Network]:
    """Open the segmenter on large windows: (N, 1, Z, Y, X) to labels (N, 1, Z, Y, X), float."""

    def load(module: nn.Module, threads: int) -> Engine:
        from cryoscale.inference.dense import open_label_engine
        from cryoscale.inference.wrappers import HeadOf

        return open_label_engine(HeadOf(module, "seg"), window=window, threads=threads)

    return _borrow(access, "segmenter", ["labels", *window], load, alone='["labels"')


def open_network(
    access: Access, kind: str, shape: Sequence[int], wrap: Callable[[nn.Module], nn.Module], batch: int
) -> contextlib.AbstractContextManager[Network]:
    """Open the segmenter behind any face, on items of a shape.

    Parameters
    ----------
    kind : str
        Names what `wrap` makes: one network of a process for each kind, shape and weights.
    shape : sequence of int
        Of an item, without the batch.
    wrap : callable
        From the trained network to what computes one tensor of one.
    batch : int
        Items computed at a time; see `batch_for`.
    """

    def load(module: nn.Module, threads: int) -> Engine:
        from cryoscale.inference.engine import open_engine

        return open_engine(wrap(module), input_shape=shape, batch=batch, threads=threads)

    return _borrow(access, "segmenter", [kind, batch, *shape], load, alone=f'["{kind}"')


def open_large(
    access: Access, kind: str, window: Sequence[int], wrap: Callable[[nn.Module], nn.Module], channels: int
) -> contextlib.AbstractContextManager[Network]:
    """Open the segmenter on large windows: (N, 1, Z, Y, X) to what `wrap` gives, (N, `channels`, Z, Y, X)."""

    def load(module: nn.Module, threads: int) -> Engine:
        from cryoscale.inference.dense import open_window_engine

        return open_window_engine(wrap(module), channels, window=window, threads=threads)

    return _borrow(access, "segmenter", [kind, *window], load, alone=f'["{kind}"')


def batch_for(voxels: int) -> int:
    """Return how many items of so many voxels go through a network at a time: a rule of the item alone.

    64 of 40 x 40 x 40, fewer of larger ones, and one alone from 64 x 64 x 64 on: then all threads share it.
    """
    if voxels >= ALONE_VOXELS:
        return 1
    return int(2 ** np.floor(np.log2(np.clip(BATCH_VOXELS / voxels, 1, BATCH))))


def applied_bytes(access: Access, voxels: int, channels: int, maps: int, batch: int) -> int:
    """Bound what a network takes once it runs on items of so many voxels.

    Parameters
    ----------
    access : Access
        Its `[execution]` table says how many threads a worker has; as many as this machine's cores, if not.
    voxels, batch : int
        Of an item, and how many are computed at a time.
    channels, maps : int
        Width of the network at full resolution, and how many maps of that width are there at the same time.
    """
    threads = access.config.execution.ray_threads or max(4, cpu_count())
    items = 1 if batch == 1 else max(batch, AT_ONCE * threads)
    return 4 * voxels * items * (maps * channels + 2)
