"""From a trial's numbers to words: rates, what bounds them, how long a data set takes, what to change."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cryoscale.pipeline.engines import EngineChoice, local_gpus, local_workers, memory_budgets
from cryoscale.pipeline.throughput import StageRate, Trial
from cryoscale.runtime.ceilings import Ceilings
from cryoscale.runtime.memory import cpu_count, format_bytes

PER_TOMOGRAM = {"ingest": "dask", "pick": "dask", "instances": "dask", "encode": "ray", "segment": "ray"}
FITS = ("train_encoder", "cluster", "train_segmenter")
WORTH = 1.2  # a change is named from this ratio on
COMPUTING = {
    "ingest": "packing and halving",
    "pick": "the filter",
    "train_encoder": "the network",
    "encode": "the network",
    "cluster": "distances",
    "train_segmenter": "the network",
    "segment": "the network",
    "instances": "joining voxels",
}


def bound_of(rate: StageRate) -> str:
    """Say what a stage spends most of its time on, and how much the other part is."""
    computing = COMPUTING.get(rate.stage, "computing")
    if not rate.what or not rate.besides:
        return computing
    share = min(1.0, rate.besides / rate.seconds)
    if share > 0.5:
        return f"{rate.what} ({share:.0%} of its time)"
    return f"{computing} ({rate.what} alone: {share:.0%} of its time)"


def forecast(trial: Trial) -> dict[str, float]:
    """Estimate the seconds of each stage for the whole tomogram, with the workers that a run here starts.

    Stages of one engine share its workers; the embedded Ray worker has all cores, as the trial had.
    """
    scale = trial.whole.voxels / trial.shape.voxels
    found = {}
    for rate in trial.rates:
        if rate.stage in PER_TOMOGRAM:
            workers = local_workers(trial.config, "dask") if PER_TOMOGRAM[rate.stage] == "dask" else 1
            found[rate.stage] = rate.seconds * scale / workers
    return found


def suggestions(trial: Trial, ceilings: Ceilings) -> list[str]:
    """List what would make runs here faster; each sentence rests on a number that was measured."""
    said = []
    per_stage = forecast(trial)
    whole = sum(per_stage.values()) or 1.0
    by_name = {rate.stage: rate for rate in trial.rates}
    network = trial.network_seconds
    if network and network["float32"] > WORTH * network["bfloat16"]:
        ratio = network["float32"] / network["bfloat16"]
        asked = getattr(trial.config.encoder, "inference_precision", "float32")
        if asked == "float32":
            said.append(
                "encoder.inference_precision = bfloat16: "
                f"the encoder alone is {ratio:.1f} times as fast in it here."
            )
    model = sum(per_stage.get(name, 0.0) for name in ("encode", "segment"))
    if not local_gpus() and model > 0.5 * whole:
        said.append(
            f"a GPU: the networks take {model / whole:.0%} of the time of a tomogram here, and there is none."
        )
    for name in ("ingest", "pick", "segment"):
        rate = by_name.get(name)
        if rate and rate.besides > 0.5 * rate.seconds:
            bytes_s = 4e6 * rate.amount / rate.besides
            disk = min(ceilings.read, ceilings.write)
            if bytes_s > 0.5 * disk or name == "ingest":
                said.append(
                    f"a faster disk for the run: {name} waits for it; it gives {format_bytes(disk)}/s here."
                )
                break
    budget = memory_budgets(trial.config, EngineChoice()).get("cpu", 0)
    if 0 < budget < 1_500_000_000:
        said.append(
            f"execution.dask_workers lower than {local_workers(trial.config, 'dask')}: each worker has "
            f"{format_bytes(budget)} only, and large tomograms will not fit the promise of a stage."
        )
    training = by_name.get("train_encoder")
    if training:
        config = trial.config.encoder
        said.append(
            f"training: an epoch of 20,000 patches takes {20_000 / training.rate / 60:.0f} min here. "
            "encoder.max_patches and encoder.epochs set it; encoder.weights takes a network that is trained."
        )
        if config.precision == "float32" and ceilings.bfloat16 > 2 * ceilings.float32:
            said.append("encoder.precision = bfloat16 may shorten it: products are faster in it here.")
    return said


def as_record(trial: Trial, ceilings: Ceilings) -> dict[str, Any]:
    """Return everything as plain values, for JSON."""
    return {
        "piece": list(trial.shape),
        "tomogram": list(trial.whole),
        "picks": trial.picks,
        "cores": cpu_count(),
        "ceilings": asdict(ceilings),
        "stages": [
            {**asdict(rate), "rate": rate.rate, "bound": bound_of(rate)} for rate in trial.rates
        ],
        "network_seconds_per_patch": trial.network_seconds,
        "tomogram_seconds": forecast(trial),
        "suggestions": suggestions(trial, ceilings),
        "failures": list(trial.failures),
    }  # fmt: skip


def as_text(trial: Trial, ceilings: Ceilings) -> str:
    """Lay it out for people."""
    piece, whole = (" x ".join(map(str, shape)) for shape in (trial.shape, trial.whole))
    gpu = f"{ceilings.cuda / 1e12:.0f} TFLOP/s on the GPU" if ceilings.cuda else "no GPU"
    part = "" if piece == whole else f"{piece} voxels out of "
    lines = [
        f"{part}{whole} voxels (z, y, x), {trial.picks} picks; one process with {cpu_count()} cores",
        f"this machine at most: {format_bytes(ceilings.write)}/s to the disk, "
        f"{format_bytes(ceilings.copy)}/s through memory, products {ceilings.float32 / 1e9:.0f} GFLOP/s "
        f"(bfloat16 {ceilings.bfloat16 / 1e9:.0f}), {gpu}",
        "",
        f"{'stage':<16}{'rate':>12} {'per second':<20}{'seconds':>9}  bound by",
    ]
    lines += [
        f"{r.stage:<16}{_number(r.rate):>12} {r.unit:<20}{r.seconds:>9.2f}  {bound_of(r)}"
        for r in trial.rates
    ]
    if trial.network_seconds:
        each = ", ".join(f"{1e3 * s:.2f} ms in {name}" for name, s in trial.network_seconds.items())
        lines += ["", f"the encoder alone, per patch from memory: {each}"]
    per_stage = forecast(trial)
    if per_stage:
        total = sum(per_stage.values())
        parts = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in per_stage.items())
        lines += [
            f"one tomogram like this, without the fits: about {_time(total)} here ({parts}); "
            f"1000 of them: {_time(1000 * total)}",
        ]
    lines += ["", "what would change that:", *(f"- {said}" for said in suggestions(trial, ceilings))]
    lines += [f"not measured: {failure}" for failure in trial.failures]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _time(seconds: float) -> str:
    for limit, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * limit:
            return f"{seconds / limit:.1f} {unit}"
    return f"{seconds:.1f} s"
