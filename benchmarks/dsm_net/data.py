"""The data sets: boxes cut from simulated tomograms, with mask, density and class, as one file.

| data | recipe | what |
|---|---|---|
| A | `dsm-net-a` | signal-to-noise ratio 0.06 |
| B | `dsm-net-b` | the same scene at 0.01 |
| D | `dsm-net-a` | the same scene at 0.5, where the SSN3D paper begins |
| C | `dsm-net-c` | a stand-in for the paper's real boxes: ribosomes and proteasomes |

Making them needs all of cryoscale; reading them numpy alone. In the file inputs and densities are float16,
which is finer than their noise, masks single bits; A, B and D share masks, densities and classes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dsm_net.sizes import SIZES, Size

SCENE_OF = {"A": "ABD", "B": "ABD", "D": "ABD", "C": "C"}
SNR_OF = {"A": 0.06, "B": 0.01, "D": 0.5}
SHAPES = ("ribosome", "barrel", "rod", "shell", "ring", "ball")
"""Built-in kinds of particles that play the parts where there are no densities, most telling first."""
FEW = ("4v4r", "3j9i", "1bxn", "4cr2")
"""Densities of the sizes with few classes: a ribosome, a barrel, a compact enzyme, a long machine."""
COPIES_PER_VOXEL = 10_000 / (300 * 600 * 600)
COPIES_PER_VOXEL_C = 786 / (160 * 424 * 424)  # of those where centres may be


@dataclass(frozen=True)
class DataSet:
    """Boxes of one data set, in memory.

    Attributes
    ----------
    inputs : (N, 1, S, S, S) float32
        As tomograms are for networks: mean 0, sd 1 over the whole, objects dark.
    mask : (N, S, S, S) uint8
        1 in the particle in the middle.
    density : (N, 1, S, S, S) float32
        Of that particle alone, without noise, objects dark as in the inputs, scaled to sd 1 over all boxes:
        the loss of recovery is then of the order of the others.
    classes : (N,) int64
    split : (N,) str
        "train", "validation" or "test".
    facts : dict
        Recipe, names of the classes, signal-to-noise ratio as it came out, voxel size, `id`; "maps" or
        "built-in shapes" as `densities`.
    """

    inputs: Any
    mask: Any
    density: Any
    classes: Any
    split: Any
    facts: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return list(self.facts["classes"])


# -- reading ------------------------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
    """Return what a file holds: `size`, and the facts of each data set."""
    with np.load(path) as arrays:
        found: dict[str, Any] = json.loads(str(arrays["facts"]))
    return found


def load(path: Path, name: str) -> DataSet:
    """Read one data set of a file."""
    scene = SCENE_OF[name]
    with np.load(path) as arrays:
        told = json.loads(str(arrays["facts"]))
        facts = {**told["data"][name], "densities": told["densities"]}
        inputs = arrays[f"{name}.inputs"].astype(np.float32)
        side = inputs.shape[-1]
        bits = np.unpackbits(arrays[f"{scene}.mask"], axis=1, count=side**3)
        return DataSet(
            inputs[:, None], bits.reshape(-1, side, side, side),
            arrays[f"{scene}.density"].astype(np.float32)[:, None],
            arrays[f"{scene}.classes"].astype(np.int64), arrays[f"{scene}.split"], facts,
        )  # fmt: skip


# -- making -------------------------------------------------------------------------------------------------


def make(path: Path, size: str, *, densities: str | None = None, seed: int = 1) -> Path:
    """Simulate all data sets and write them into one file; nothing if it stands there.

    Parameters
    ----------
    path : Path
        `….npz`; runs are made in a folder beside it, which goes when the file is written.
    size : str
        As in `SIZES`.
    densities : str, optional
        A folder of maps, those that the recipes name. Without it built-in shapes play the parts.
    seed : int
        Of the scenes and the noise.
    """
    asked = {"size": size, "seed": seed, "densities": "maps" if densities else "built-in shapes"}
    if path.exists():
        found = describe(path)
        if any(found[key] != value for key, value in asked.items()):
            raise SystemExit(f"{path} holds other data ({_told(found)}); give another file, or remove it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {**asked, "data": {}}
    place = path.with_suffix(".runs")
    for scene in ("ABD", "C"):
        names = [name for name, its in SCENE_OF.items() if its == scene]
        print(f"simulating {', '.join(names)}", flush=True)
        for name, made in _simulated(place / scene, scene, names, SIZES[size], densities, seed).items():
            facts["data"][name] = made.pop("facts")
            arrays[f"{name}.inputs"] = made.pop("inputs")
            arrays |= {f"{scene}.{key}": values for key, values in made.items()}
    arrays["facts"] = np.array(json.dumps(facts))
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.rename(path)
    shutil.rmtree(place)
    return path


def _told(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {facts[key]}" for key in ("size", "seed", "densities"))


def _simulated(
    place: Path, scene: str, names: Sequence[str], size: Size, densities: str | None, seed: int
) -> dict[str, dict[str, Any]]:
    """Simulate the tomograms of one scene; a run that was begun goes on."""
    from cryoscale.data.run import Run
    from cryoscale.pipeline.driver import Options, run_pipeline
    from cryoscale.pipeline.simulation import set_up_simulation

    recipe = "dsm-net-c" if scene == "C" else "dsm-net-a"
    set_up_simulation(
        str(place), recipe, seed=seed, densities=[densities] if densities else [],
        settings=settings_of(scene, names, size, maps=densities is not None),
    )  # fmt: skip
    run = Run.open(place)
    result = run_pipeline(run, Options(executor="serial", until="subtomograms", trace=False))
    if result.failures:
        raise SystemExit(f"{place}: {result.failures}")
    return {name: _boxes(run, name, recipe, size) for name in names}


def settings_of(scene: str, names: Sequence[str], size: Size, *, maps: bool) -> list[str]:
    """Return what a size changes of the recipe."""
    settings = ["ingest.levels=1", f"simulate.subtomograms.split={list(size.split)}"]
    shape = size.shape_c if scene == "C" else size.shape
    copies = 786 if scene == "C" else 10_000
    if shape is not None:
        free = [max(side - size.box, size.box) for side in shape] if scene == "C" else list(shape)
        per_voxel = COPIES_PER_VOXEL_C if scene == "C" else COPIES_PER_VOXEL
        copies = max(round(float(np.prod(free)) * per_voxel), size.boxes or 1)
        settings += [
            f"simulate.scene.shape={list(shape)}", f"simulate.subtomograms.size_voxels={size.box}",
            f"simulate.subtomograms.count={size.boxes}",
        ]  # fmt: skip
    if scene == "C":
        settings.append(f'simulate.variants=[{{name="C",copies={copies}}}]')
        if shape is not None and min(shape) < 100:  # no room for vesicles
            margin = 13.68 * size.box / 2
            settings += ["simulate.scene.membranes={planes=1}", f"simulate.scene.margin_angstrom={margin}"]
        if not maps:
            settings.append(_particles(["ribosome", "barrel"], [400, 386]))
        return settings
    variants = [f'{{name="{name}",copies={copies},snr={SNR_OF[name]}}}' for name in names]
    settings.append(f"simulate.variants=[{','.join(variants)}]")
    if not maps or size.classes is not None:
        kinds = (FEW if maps else SHAPES)[: size.classes]
        settings.append(_particles(kinds, [1] * len(kinds)))
    return settings


def _particles(kinds: Sequence[str], copies: Sequence[int]) -> str:
    rows = [f'{{density="{kind}",copies={n}}}' for kind, n in zip(kinds, copies, strict=True)]
    return f"simulate.scene.particles=[{','.join(rows)}]"


def _boxes(run: Any, name: str, recipe: str, size: Size) -> dict[str, Any]:
    """Read the boxes of one tomogram of a run, binned."""
    from cryoscale.data.subtomograms import Subtomograms

    tomogram = f"{name}_1"
    cut = Subtomograms(run.subtomograms(tomogram))
    table = cut.table
    rows = slice(0, len(table["class"]))
    inputs = binned(cut.read("data", rows), size.binning)
    inputs = ((inputs - inputs.mean()) / inputs.std()).astype(np.float16)
    density = binned(cut.read("density", rows), size.binning)
    mask = binned(cut.read("mask", rows).astype(np.float32), size.binning) >= 0.5
    simulate = run.config.simulate.for_tomogram(tomogram)
    classes = list(simulate.scene.particle_classes)
    imaged = run.folder.read_toml(f"simulated/{tomogram}.toml")
    facts = {
        "recipe": recipe, "classes": classes, "boxes": len(inputs), "side": inputs.shape[-1],
        "voxel_size_angstrom": simulate.scene.voxel_size_angstrom * size.binning, "binning": size.binning,
        "snr": simulate.imaging.snr, "realised_snr": imaged["realised_snr"],
        "tomogram": list(simulate.scene.shape), "copies": sum(p.copies for p in simulate.scene.particles),
        "per_class": np.bincount(table["class"], minlength=len(classes) + 1)[1:].tolist(),
        "object_share": float(mask.mean()),
        "id": hashlib.sha256(inputs.tobytes() + mask.tobytes()).hexdigest()[:12],
    }  # fmt: skip
    return {
        "inputs": inputs, "density": (-density / density.std()).astype(np.float16),
        "mask": np.packbits(mask.reshape(len(mask), -1), axis=1),
        "classes": np.asarray(table["class"], dtype=np.int16) - 1,  # 0 is background in the table
        "split": np.asarray(table["split"], dtype="<U10"), "facts": facts,
    }  # fmt: skip


def binned(volumes_NZYX: Any, factor: int) -> Any:
    """Average cubes of voxels."""
    if factor == 1:
        return volumes_NZYX
    n, *sides = volumes_NZYX.shape
    split = [part for side in sides for part in (side // factor, factor)]
    return volumes_NZYX.reshape(n, *split).mean(axis=(2, 4, 6), dtype=np.float32)
