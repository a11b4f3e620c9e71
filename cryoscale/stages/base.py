"""What a stage is: the contract that the controller drives, and how a stage travels to workers."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cryoscale.config.run import parameters_key
from cryoscale.data.access import Access
from cryoscale.geometry import Block

Engine = Literal["cpu", "model"]
Operation = Literal["block", "seal", "compute"]


@dataclass(frozen=True)
class Plan:
    """The blocks of one stage of one tomogram, and what they promise.

    Parameters
    ----------
    phases : tuple of tuple of Block
        Blocks of a phase are independent; a phase starts when the one before it is done. Block indices are
        unique over all phases.
    bytes_per_worker : int
        The most memory that a worker takes beyond its interpreter, models included.
    disk_bytes : int
        The most that the artifact takes on storage.
    """

    phases: tuple[tuple[Block, ...], ...]
    bytes_per_worker: int
    disk_bytes: int = 0

    @property
    def block_count(self) -> int:
        """Number of blocks over all phases."""
        return sum(len(phase) for phase in self.phases)

    @property
    def voxels(self) -> int:
        """Voxels (or rows) of all cores."""
        return sum(block.core.voxels for phase in self.phases for block in phase)

    @property
    def identity(self) -> str:
        """A hash of the cut into blocks: marks of another cut mean nothing here."""
        return parameters_key(
            [[[b.index, b.level, b.core.start, b.core.stop] for b in p] for p in self.phases]
        )


@dataclass(frozen=True)
class BlockReport:
    """What the function of a block returns: whether it found anything, and how much it went through."""

    empty: bool = False
    voxels: int = 0


BlockFunction = Callable[[Block], BlockReport]


class Stage(ABC):
    """A step of the way: named, versioned, and explicit about what it touches.

    Stages hold no parameters; these come with the access. `version` is raised whenever the bytes that the
    stage writes change for the same parameters.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    engine: ClassVar[Engine] = "cpu"
    reads: ClassVar[frozenset[str]] = frozenset()
    writes: ClassVar[str]
    needs_client: ClassVar[bool] = False


class BlockStage(Stage):
    """A stage that works block by block on one tomogram."""

    @abstractmethod
    def plan(self, access: Access) -> Plan:
        """List the blocks and bound a worker's bytes, touching metadata only."""

    @abstractmethod
    def create(self, access: Access) -> None:
        """Make the empty artifact, once."""

    @abstractmethod
    def open_worker(self, access: Access) -> contextlib.AbstractContextManager[BlockFunction]:
        """Open what the stage reads and writes, load its model, and yield the function of one block."""

    @abstractmethod
    def seal(self, access: Access) -> dict[str, Any]:
        """Join what needs joining, publish metadata last, and return facts for the ledger.

        May run twice after a crash, so it must not delete what it needs: the controller removes the parts
        once the ledger says that the unit is sealed. The entry `empty`, if true, says that nothing was found.
        """


class WholeStage(Stage):
    """A stage that looks at the whole data set at once, or at one tomogram without blocks."""

    def bytes_needed(self, access: Access) -> int:
        """Bound the bytes that `compute` takes beyond its interpreter, touching metadata only; 0: little.

        For a stage that computes with a Dask client (`needs_client`) this is what all workers hold together.
        """
        return 0

    @abstractmethod
    def compute(self, access: Access) -> dict[str, Any]:
        """Do the work and return facts for the ledger; the entry `hash` names what a fit produced."""


@dataclass(frozen=True)
class StageWork:
    """A stage on its way to a worker: what `runtime` calls a `Work`."""

    stage: Stage
    access: Access
    operation: Operation

    @property
    def key(self) -> str:
        """What a worker opens once: the same stage, tomogram, parameters, cut into blocks, and operation."""
        access = self.access
        return f"{self.stage.name}/{access.tomogram}/{access.key}/{access.plan}/{self.operation}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Any], Any]]:
        """Yield the function that a worker applies to each argument."""
        if isinstance(self.stage, WholeStage):  # a training that is repeated writes other bytes
            access = self.access.fenced(self.stage.name, "plan.json", until="sealed.json")
        else:
            access = self.access.fenced(self.stage.name, "created")
        if self.operation == "block":
            assert isinstance(self.stage, BlockStage)
            with self.stage.open_worker(access) as function:
                yield function
        elif self.operation == "seal":
            assert isinstance(self.stage, BlockStage)
            seal = self.stage.seal
            yield lambda _: seal(access)
        else:
            assert isinstance(self.stage, WholeStage)
            compute = self.stage.compute
            yield lambda _: compute(access)


def chunked_rows(rows: int, per_block: int) -> tuple[Block, ...]:
    """Cut a table into blocks of rows."""
    starts = range(0, rows, per_block)
    return tuple(Block.of_rows(i, s, min(s + per_block, rows)) for i, s in enumerate(starts))


def renumber(phases: Sequence[Sequence[Block]]) -> tuple[tuple[Block, ...], ...]:
    """Give the blocks of all phases one running index."""
    numbered, index = [], 0
    for phase in phases:
        blocks = []
        for block in phase:
            blocks.append(Block(index, block.core, block.read, block.level))
            index += 1
        numbered.append(tuple(blocks))
    return tuple(numbered)
