"""Two processes that train together do what one process does with the same batches."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cryoscale.errors import ConfigurationError, StateError, SurroundingsError
from cryoscale.learn.distributed import Group, _network, claim_store, group_of, open_group
from cryoscale.learn.losses import IGNORED, SegmentationLoss
from cryoscale.learn.training import RefusedCheckpoint, TrainSettings, fit, split_rows
from cryoscale.models.edss3d import EDSS3D
from cryoscale.models.layers import Dropout

BOX = (8, 8, 8)
SETTINGS = TrainSettings(epochs=4, batch_size=6, seed=3, learning_rate=1e-3, validation_fraction=0.2)
ITEMS = 24  # 5 of them validate: batches of 6, 6, 6 and 1, the last of which leaves rank 1 without any
TOLERANCE = 1e-4
PATIENCE_S = 120.0


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Patches, and classes of their voxels; the first half of them is hardly known."""
    rng = np.random.default_rng(5)
    patches = rng.normal(size=(ITEMS, 1, *BOX)).astype(np.float32)
    classes = (patches[:, 0] > 0.5).astype(np.uint8) + (patches[:, 0] > 1.2)
    for item in range(ITEMS):
        share = 0.95 if item < ITEMS // 2 else 0.1
        classes[item][rng.random(BOX) < share] = IGNORED
    return patches, classes


def network(seed: int = 0) -> nn.Module:
    return EDSS3D(3, channels=4, seed=seed)


class Disk:
    """A checkpoint in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        new = self.path.with_suffix(".new")
        torch.save(state | {"progress": json.dumps(state["progress"])}, new)
        new.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        state = torch.load(self.path)
        return state | {"progress": json.loads(state["progress"])}


def trained(group: Group | None, checkpoint: Disk | None = None, loss: Any = None) -> dict[str, Any]:
    """Train the small problem, and tell of it; other processes start from other weights."""
    module = network(seed=group.rank if group else 0)
    patches, classes = problem()
    told: list[int] = []
    result = fit(
        module,
        patches,
        classes,
        loss or SegmentationLoss(),
        SETTINGS,
        checkpoint=checkpoint,
        on_epoch=lambda record: told.append(record.epoch),
        group=group,
    )
    return {
        "weights": result.best_state,
        "module": {name: value.clone() for name, value in module.state_dict().items()},
        "history": [(r.train_loss, r.validation_loss, dict(r.validation_parts)) for r in result.history],
        "told": told,
    }


@dataclass
class DiesInEpoch:
    """A loss under which a process ends without a word, as one does that is killed."""

    rank: int
    step: int
    count: int = 0

    def __repr__(self) -> str:
        return repr(SegmentationLoss())  # which the training goes on with

    def __call__(self, output: Any, inputs: Any, targets: Any) -> Any:
        self.count += 1
        if self.count == self.step and self.rank == 1:
            os._exit(9)
        return SegmentationLoss()(output, inputs, targets)

    def weight(self, inputs: Any, targets: Any) -> float:
        return SegmentationLoss().weight(inputs, targets)


@dataclass
class Post:
    """How two processes of a test find each other: what `runtime.ray_train` gives its workers."""

    rank: int
    size: int
    pipe: Any
    address: str = "127.0.0.1"

    def from_first(self, make: Any) -> str:
        if self.rank == 0:
            text = make()
            self.pipe.send(text)
            return str(text)
        return str(self.pipe.recv())


def listening_addresses() -> set[str]:
    """Addresses that this process listens at, IPv4 in hexadecimal or IPv6."""
    sockets = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            sockets.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].rpartition(":")[0])
    return found


def masks_of_a_network_with_dropout(group: Group | None) -> list[int]:
    """Train one step, and say which units were dropped."""
    masks: list[int] = []
    module = nn.Sequential(nn.Conv3d(1, 2, 1), Dropout(0.5))

    def note(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if layer.training:
            masks.extend((output[0, 0].flatten()[:64] == 0).int().tolist())

    module[1].register_forward_hook(note)
    patches, classes = problem()
    settings = TrainSettings(epochs=1, batch_size=ITEMS, seed=1)
    fit(module, patches, np.minimum(classes, 1), SegmentationLoss(), settings, group=group)
    return masks[:64]


ONE_STEP = TrainSettings(epochs=1, batch_size=ITEMS, seed=3, optimiser="sgd", momentum=0.0, learning_rate=0.5)


def one_step(group: Group) -> dict[str, torch.Tensor]:
    """Train one step of plain gradient descent."""
    patches, classes = problem()
    return fit(network(), patches, classes, SegmentationLoss(), ONE_STEP, group=group).best_state


def one_step_of_torch(group: Group) -> dict[str, torch.Tensor]:
    """Do the same by torch's own DistributedDataParallel, whose mean over processes is put right by hand."""
    patches, classes = (torch.from_numpy(values) for values in problem())
    rows = group.share(split_rows(ITEMS, ONE_STEP)[0])
    module, loss = network(), SegmentationLoss()
    parallel = nn.parallel.DistributedDataParallel(module)
    total, _ = loss(parallel(patches[rows]), patches[rows], classes[rows])
    weight = loss.weight(patches[rows], classes[rows])
    (total * group.size * weight / group.totals([weight])[0]).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= ONE_STEP.learning_rate * parameter.grad
    return {name: value.clone() for name, value in module.state_dict().items()}


def primitives(group: Group) -> dict[str, Any]:
    """Try everything a group can do; the numbers are of this rank."""
    floats = torch.arange(6.0).view(2, 3).T * (group.rank + 1)  # not contiguous
    double = torch.full((2,), 0.5, dtype=torch.float64)
    whole = torch.tensor(3 + group.rank)
    group.sum_([floats, double, whole])
    module = nn.BatchNorm1d(2)
    module.weight.data += group.rank
    module.running_mean += 5 + group.rank
    group.broadcast_module(module)
    group.require_same({"seed": 3, "data": "abc"})
    with pytest.raises(SurroundingsError, match="do not agree on data"):
        group.require_same({"seed": 3, "data": f"of {group.rank}"})
    group.barrier()
    return {
        "sums": [floats, double, whole],
        "totals": group.totals([1.5, group.rank]),
        "weight": module.weight.detach().clone(),
        "mean": module.running_mean.clone(),
        "share": group.share(np.arange(5)),
    }


def together(rank: int, pipe: Any, folder: Path) -> None:
    """Be one of two processes: everything that needs no dying."""
    torch.set_num_threads(1)
    with group_of(Post(rank, 2, pipe), patience_s=PATIENCE_S) as group:
        told = {
            "primitives": primitives(group),
            "trained": trained(group),
            "step": (one_step(group), one_step_of_torch(group)),
            "masks": masks_of_a_network_with_dropout(group),
            "listening": listening_addresses() if sys.platform == "linux" else set(),
        }
        with pytest.raises(StateError, match="already"), open_group(rank, 2, store=f"file://{folder}/x"):
            pass
    told["left"] = torch.distributed.is_initialized()
    (folder / f"told{rank}").write_bytes(pickle.dumps(told))


def one_dies(rank: int, store: str, folder: Path) -> None:
    """Be one of two processes, of which the second is killed in its third epoch."""
    torch.set_num_threads(1)
    loss = DiesInEpoch(rank, step=11)  # four steps and one of validation make an epoch
    try:
        with open_group(rank, 2, store=store, patience_s=PATIENCE_S) as group:
            trained(group, Disk(folder / "checkpoint"), loss)
    except SurroundingsError as error:
        (folder / f"told{rank}").write_bytes(pickle.dumps(str(error)))


def go_on(rank: int, store: str, folder: Path) -> None:
    """Be one of two processes that go on from a checkpoint."""
    torch.set_num_threads(1)
    with open_group(rank, 2, store=store, patience_s=PATIENCE_S) as group:
        told = trained(group, Disk(folder / "checkpoint"))
    (folder / f"told{rank}").write_bytes(pickle.dumps(told))


def run_two(target: Any, arguments: list[Any], folder: Path) -> tuple[list[Any], list[int | None]]:
    """Run two processes, and give what they told and how they ended."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(r, arguments[r], folder)) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.close()
    told = [folder / f"told{rank}" for rank in range(2)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in told], codes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes told that trained together."""
    ends = multiprocessing.get_context("spawn").Pipe()
    told, codes = run_two(together, list(ends), tmp_path_factory.mktemp("two"))
    for end in ends:
        end.close()
    assert codes == [0, 0]
    return told


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """What one process gives for the same problem."""
    return trained(None)


def far_apart(first: dict[str, Any], second: dict[str, Any]) -> float:
    assert set(first) == set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_two_processes_train_what_one_trains(one, two):
    start = network().state_dict()
    assert far_apart(one["weights"], start) > 20 * TOLERANCE  # it learned something
    for told in (two[0]["trained"], two[1]["trained"]):
        assert far_apart(told["weights"], one["weights"]) < TOLERANCE
        assert far_apart(told["module"], one["module"]) < TOLERANCE


def test_both_processes_hold_the_same_bits(two):
    first, second = (told["trained"] for told in two)
    assert far_apart(first["weights"], second["weights"]) == 0
    assert first["history"] == second["history"]


def test_losses_of_unequal_shares_are_those_of_the_whole(one, two):
    for (train, validation, parts), other in zip(one["history"], two[0]["trained"]["history"], strict=True):
        assert other[0] == pytest.approx(train, rel=1e-4)
        assert other[1] == pytest.approx(validation, rel=1e-4)
        assert other[2] == pytest.approx(parts, rel=1e-4)


def test_a_step_is_that_of_torchs_distributed_data_parallel(two):
    for told in two:
        ours, torchs = told["step"]
        assert far_apart(ours, torchs) < 1e-6
        assert far_apart(ours, network().state_dict()) > 1e-3


def test_only_the_first_process_tells_of_its_epochs(two):
    assert two[0]["trained"]["told"] == [1, 2, 3, 4]
    assert two[1]["trained"]["told"] == []


def test_each_process_drops_other_units(two):
    alone = masks_of_a_network_with_dropout(None)
    assert two[0]["masks"] == alone
    assert 10 < sum(two[1]["masks"]) < 54
    assert two[1]["masks"] != alone


def test_what_a_group_can_do(two):
    for told in (told["primitives"] for told in two):
        floats, double, whole = told["sums"]
        assert torch.equal(floats, torch.arange(6.0).view(2, 3).T * 3)
        assert torch.equal(double, torch.ones(2, dtype=torch.float64))
        assert int(whole) == 7
        assert told["totals"] == [3.0, 1.0]
        assert told["weight"].tolist() == [1.0, 1.0]
        assert told["mean"].tolist() == [5.0, 5.0]
    assert [told["primitives"]["share"].tolist() for told in two] == [[0, 1, 2], [3, 4]]


def test_a_group_is_left_at_the_end(two):
    assert [told["left"] for told in two] == [False, False]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nobody_listens_but_on_loopback(two):
    heard = two[0]["listening"] | two[1]["listening"]
    assert heard == {"0100007F"}


@pytest.mark.slow
def test_a_group_goes_on_after_one_process_was_killed(one, tmp_path):
    told, codes = run_two(one_dies, [f"file://{tmp_path}/first"] * 2, tmp_path)
    assert codes == [0, 9]
    assert "lost the others" in told[0]
    assert Disk(tmp_path / "checkpoint").load()["progress"]["epoch"] == 2
    told, codes = run_two(go_on, [f"file://{tmp_path}/second"] * 2, tmp_path)
    assert codes == [0, 0]
    assert told[0]["told"] == [3, 4]
    assert far_apart(told[0]["weights"], one["weights"]) < TOLERANCE
    assert far_apart(told[0]["weights"], told[1]["weights"]) == 0


def refuse(rank: int, store: str, folder: Path) -> None:
    """Be one of two processes whose checkpoint is refused by one, and then by both."""
    torch.set_num_threads(1)
    told = []
    with open_group(rank, 2, store=store, patience_s=PATIENCE_S) as group:
        for state in ("bad" if rank else "good", "none" if rank else "good", "bad"):
            try:
                trained(group, Disk(folder / state))
            except (RefusedCheckpoint, SurroundingsError) as error:
                told.append((type(error).__name__, str(error)))
            group.barrier()  # they are still together
    (folder / f"told{rank}").write_bytes(pickle.dumps(told))


def test_processes_leave_together_when_a_checkpoint_is_refused(tmp_path):
    good = Disk(tmp_path / "good")
    trained(None, good)
    state = good.load()
    state["progress"]["identity"]["seed"] = 99
    Disk(tmp_path / "bad").save(state)
    told, codes = run_two(refuse, [f"file://{tmp_path}/store"] * 2, tmp_path)
    assert codes == [0, 0]
    for rank in (0, 1):
        kinds, texts = zip(*told[rank], strict=True)
        assert kinds == ("SurroundingsError", "SurroundingsError", "RefusedCheckpoint")
        assert "Of 2 processes 1 refuse" in texts[0]
        assert "do not agree on epoch of the checkpoint" in texts[1]
        assert "differs in seed" in texts[2]
    assert "differs in seed" in told[1][0][1]


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_contiguous_and_even(n, size):
    rows = np.arange(n) * 3
    shares = [Group(rank, size).share(rows) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shares), rows)
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_a_group_of_one_sends_nothing():
    group, values = Group(), torch.ones(3)
    group.sum_([values])
    group.broadcast_module(nn.Linear(2, 2))
    group.barrier()
    group.require_same({"seed": 1})
    assert group.totals([2.5]) == [2.5]
    assert torch.equal(values, torch.ones(3))
    with open_group(0, 1, store="nowhere") as opened:
        assert opened.alone
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_impossible_groups_are_refused(rank, size):
    with pytest.raises(ConfigurationError, match="no process"):
        Group(rank, size)


@pytest.mark.parametrize("store", ["env://", "tcp://127.0.0.1", "tcp://:12", "file://relative", ""])
def test_stores_of_another_form_are_refused(store):
    with pytest.raises(ConfigurationError, match="neither"), open_group(0, 2, store=store):
        pass


def test_a_group_whose_others_do_not_come_says_so():
    with (
        pytest.raises(SurroundingsError, match="Process 0 of 2 lost the others"),
        open_group(0, 2, store=claim_store(), patience_s=1.0),
    ):
        pass
    assert not torch.distributed.is_initialized()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "fe80::1"])
def test_an_address_whose_interface_nobody_knows_is_refused(address, monkeypatch, tmp_path):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with (
        pytest.raises(ConfigurationError, match=rf"{address}.* IPv4 address.*GLOO_SOCKET_IFNAME"),
        open_group(0, 2, store=f"file://{tmp_path}/store", address=address),
    ):
        pass
    assert "GLOO_SOCKET_IFNAME" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="loopback has another name elsewhere")
def test_loopback_has_its_interface_by_any_name_and_what_a_person_sets_stays(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for address in ("127.0.0.1", "localhost", "::1"):
        with _network(address):
            assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    with _network("192.0.2.1"):
        assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
