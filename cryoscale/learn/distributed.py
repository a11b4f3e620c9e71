"""Training on several devices: processes that share each batch and add up their gradients.

::

    global batch -> share(rows) of each rank -> forward, backward -> sum_(gradients) -> the same step for all

Every process holds the whole network and steps its own optimiser. What the loop does, so that a group
equals one process that takes the same global batches:

1. `batch_size` is that of the global batch. The order of the items and the split are drawn as in one
   process, from seed and epoch; each rank then takes `share(rows)`.
2. A loss is a mean over something (items, voxels somebody knows the class of). Each rank asks the loss what
   its share counts (`Loss.weight`), `totals` adds these up, and each rank scales its loss by its weight over
   the total before `backward`. Parts of a share are scaled likewise. So the gradients add up to that of the
   global batch, however unequal the shares are.
3. After the last part of a step `sum_` adds the gradients of all parameters; a rank whose share is empty
   brings zeros. Losses and parts are means in the same sense, and are summed alike: every rank knows the
   same numbers and so stops in the same epoch.
4. At the start all tell whether they refuse the checkpoint, `require_same` makes sure that they go on from
   the same one, and `broadcast_module` gives all the weights of rank 0. Rank 0 alone saves it; the others
   wait for it in the next sum.
5. Turns and dropout are drawn from seed, epoch, step and rank: with equal seeds the items of every rank would
   be turned alike and lose the same units. A training with either equals one process in distribution only.
   Batch normalisation takes its statistics from the share of each rank, as everywhere without
   synchronisation; running statistics are averaged over the ranks before each validation, by the items that
   each had. A rank without items in a step adds nothing to them.

Why not `torch.nn.parallel.DistributedDataParallel`: it averages the gradients over ranks, which is exact for
equal shares and plain means only. Scaling each loss by (ranks x weight / total) repairs the mean, and a test
compares the two; but it reduces while the gradients are made, so it wants a backward pass of every rank in
every step (a rank may have no items in the last batch of an epoch), the same parameters used by all (a head
may have no target in a share), and `no_sync` round all parts but the last. What it gains: sending hides
behind the backward pass. The networks here have 0.1 to 35 million parameters: adding up ten million takes
0.06 s between two processes of one machine, where a step of such a network takes seconds. One explicit sum is
less code and has no special cases. docs/design/013-several-devices.md has the measurements.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError, StateError, SurroundingsError

Rows = TypeVar("Rows", bound=Any)

LOOPBACK = "127.0.0.1"
# Rank 0 may be busy with a checkpoint on slow storage while the others wait. A process that dies is noticed
# at once, by its broken connection.
PATIENCE_S = 1800.0


class Group:
    """The processes that train one network together; `Group()` is one process alone, and sends nothing.

    Parameters
    ----------
    rank : int
        Number of this process, 0 to size - 1.
    size : int
        Processes. With more than one, make it by `open_group`.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        if size < 1 or not 0 <= rank < size:
            raise ConfigurationError(f"There is no process {rank} in a group of {size}.")
        self.rank, self.size = rank, size

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    def share(self, rows: Rows) -> Rows:
        """Give this rank's part of the rows of a global batch.

        Parameters
        ----------
        rows : (N,) array, Tensor or sequence
            The same on every rank.

        Returns
        -------
        rows : same type
            Contiguous; the parts of all ranks, one after the other, are `rows`. Their sizes differ by one at
            most, and some are empty if there are fewer rows than ranks.
        """
        each, left = divmod(len(rows), self.size)
        start = self.rank * each + min(self.rank, left)
        part: Rows = rows[start : start + each + (self.rank < left)]
        return part

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in place; the same bits on every rank.

        Parameters
        ----------
        tensors : sequence of Tensor
            Of the same shapes and types, in the same order, on every rank. They travel as one flat tensor per
            type and device.

        Raises
        ------
        SurroundingsError
            A process of the group has ended, or cannot be reached.
        """
        self._all(tensors, lambda flat: distributed.all_reduce(flat))

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sum some numbers over all ranks, in float64."""
        sums = torch.tensor(list(values), dtype=torch.float64)
        self.sum_([sums])
        return [float(value) for value in sums]

    def broadcast_module(self, module: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""
        values = [value.detach() for value in (*module.parameters(), *module.buffers())]
        self._all(values, lambda flat: distributed.broadcast(flat, src=0))

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.totals([0.0])

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Make sure that all ranks hold the same, by its `repr`.

        Raises
        ------
        SurroundingsError
            Naming what differs; on every rank.
        """
        if self.alone:
            return
        numbers = [int(hashlib.sha256(repr(value).encode()).hexdigest()[:15], 16) for value in facts.values()]
        extremes = torch.tensor([numbers, [-number for number in numbers]], dtype=torch.int64)
        with _talking(self):
            distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX)
        other = [k for k, high, low in zip(facts, *extremes.tolist(), strict=True) if high != -low]
        if other:
            raise SurroundingsError(
                f"The {self.size} processes of this training do not agree on {', '.join(other)}.",
                remedy="They must read the same run and its checkpoint from storage that all of them see.",
            )

    def _all(self, tensors: Sequence[Tensor], talk: Callable[[Tensor], object]) -> None:
        if self.alone:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for members in kinds.values():
            flat = torch.cat([member.detach().reshape(-1) for member in members])
            with _talking(self):
                talk(flat)
            parts = torch.split(flat, [member.numel() for member in members])
            for member, part in zip(members, parts, strict=True):
                member.detach().copy_(part.view(member.shape))


@contextmanager
def open_group(
    rank: int,
    size: int,
    *,
    store: str,
    address: str | None = None,
    backend: str | None = None,
    patience_s: float = PATIENCE_S,
) -> Iterator[Group]:
    """Join a group of processes; it is left, whatever happens, at the end of the context.

    Parameters
    ----------
    rank : int
        Number of this process, 0 to size - 1.
    size : int
        Processes; with one, nothing is opened and torch's own state is left alone.
    store : str
        Where they meet: `file:///…` (a file that does not exist yet, in a folder of this user's, for
        processes of one machine), or `tcp://address:port`. There rank 0 listens at that very address: take
        loopback on one machine, and otherwise an address that only trusted people can reach, since torch asks
        nobody for a password.
    address : str, optional
        Of this machine, where the other processes reach this one; that of `store` by default. Nothing
        listens on any other interface: it must be loopback, or the first IPv4 address of one (or a name of
        such), unless GLOO_SOCKET_IFNAME says which interface to take.
    backend : str, optional
        Of torch.distributed; gloo for tensors on the CPU and nccl for those on CUDA by default.
    patience_s : float
        How long to wait for the others, in all that follows.

    Raises
    ------
    ConfigurationError
        This torch cannot do it, `store` is of another form, or nobody can say which interface has `address`.
    StateError
        This process is in a group already.
    SurroundingsError
        The others did not come.
    """
    group = Group(rank, size)
    if group.alone:
        yield group
        return
    if not distributed.is_available() or not distributed.is_gloo_available():
        raise ConfigurationError("This torch was built without gloo.", remedy="Train on one device.")
    if distributed.is_initialized():
        raise StateError("This process is in a group of torch.distributed already.")
    waiting = timedelta(seconds=patience_s)
    with _network(address or _address_of(store)):
        with _talking(group):
            meeting = _open_store(store, rank, size, waiting)
            distributed.init_process_group(
                backend or _default_backend(), store=meeting, rank=rank, world_size=size, timeout=waiting
            )
        try:
            yield group
        finally:
            distributed.destroy_process_group()


class Meeting(Protocol):
    """What a process knows that is to train with others, before they have met."""

    @property
    def rank(self) -> int:
        """Its number."""
        ...

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    @property
    def address(self) -> str:
        """Of this machine, where the others reach it."""
        ...

    def from_first(self, make: Callable[[], str]) -> str:
        """Let process 0 make a short text and give it to all."""
        ...


@contextmanager
def group_of(worker: Meeting, *, patience_s: float = PATIENCE_S) -> Iterator[Group]:
    """Join the group of a worker of `runtime.ray_train`; see `open_group`.

    ::

        def train_one(plan: Plan, worker: TrainingWorker) -> TrainResult:
            with group_of(worker) as group:
                settings = replace(plan.settings, device=worker.device)
                return fit(..., settings, checkpoint=..., group=group)
    """
    if worker.size == 1:
        yield Group()
        return
    store = worker.from_first(lambda: claim_store(worker.address))
    with open_group(
        worker.rank, worker.size, store=store, address=worker.address, patience_s=patience_s
    ) as group:
        yield group


def _default_backend() -> str:
    cuda = torch.cuda.is_available() and distributed.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


@contextmanager
def _talking(group: Group) -> Iterator[None]:
    """Say in plain words that the others cannot be reached: torch's words are those of its transports."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # torch's errors of this kind are RuntimeErrors
        said = re.sub(r"^\[[^\]]*\]\s*", "", str(error)).partition("\n")[0].partition(". This is")[0]
        raise SurroundingsError(
            f"Process {group.rank} of {group.size} lost the others that train with it ({said[:300]}).",
            remedy="One of them has ended, or the network between them is broken.",
        ) from error


# -- where processes meet ------------------------------------------------------------------------------------

_CLAIMED: dict[str, socket.socket] = {}


def claim_store(address: str = LOOPBACK) -> str:
    """Take a free port of an address for the group that this process will open as rank 0.

    Returns
    -------
    store : str
        For `open_group` on every rank. The port is held until then, so nobody else can take it.
    """
    listening = socket.create_server((address, 0), family=_family(address))
    host = f"[{address}]" if ":" in address else address
    store = f"tcp://{host}:{listening.getsockname()[1]}"
    _CLAIMED[store] = listening
    return store


def _open_store(store: str, rank: int, size: int, waiting: timedelta) -> Any:
    if store.startswith("file://"):
        return distributed.FileStore(store.removeprefix("file://"), size)  # type: ignore[attr-defined]
    address, port = _address_of(store), int(store.rpartition(":")[2])
    descriptor = None
    if rank == 0:
        # Left to itself torch listens on all interfaces of the machine.
        claimed = _CLAIMED.pop(store, None)
        descriptor = (claimed or socket.create_server((address, port), family=_family(address))).detach()
    return distributed.TCPStore(  # type: ignore[attr-defined]
        address, port, size, rank == 0, waiting, master_listen_fd=descriptor
    )


def _address_of(store: str) -> str:
    if store.startswith("file:///"):
        return LOOPBACK
    host, _, port = store.removeprefix("tcp://").rpartition(":")
    if not store.startswith("tcp://") or not host or not port.isdigit():
        raise ConfigurationError(f"store = {store!r} is neither file:///path nor tcp://address:port.")
    return host.strip("[]")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def _network(address: str) -> Iterator[None]:
    """Keep gloo and nccl to the interface of an address; what the person has set stays."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or _interface_of(address)
    if interface is None:  # left to themselves they take the one that the name of the machine stands for
        raise ConfigurationError(
            f"No interface of this machine has the address {address!r} as its first IPv4 address.",
            remedy="Give such an IPv4 address, or name the interface by the variable GLOO_SOCKET_IFNAME.",
        )
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    os.environ.update(dict.fromkeys(names, interface))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


def _interface_of(address: str) -> str | None:
    """Find the interface of one of this machine's addresses; None where that cannot be found out."""
    names = [name for _, name in socket.if_nameindex()]
    with suppress(OSError):  # of no known name, or IPv6
        address = socket.gethostbyname(address)
    if address == "::1" or address.startswith("127."):
        return next((name for name in names if name in ("lo", "lo0")), None)
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for name in names:
                asked = struct.pack("256s", name.encode()[:15])
                try:
                    found = fcntl.ioctl(probe.fileno(), 0x8915, asked)  # SIOCGIFADDR, Linux
                except OSError:  # an interface without an address
                    continue
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    except ImportError:
        return None
    return None
