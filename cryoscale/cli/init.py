"""`cryoscale init`: write `run.toml` for a set of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cryoscale.config import RunConfig

PRESETS = {
    "cpu": [],
    "gpu": ["execution.ray_workers=1"],
    "cluster": ["execution.block_voxels=512"],
    "paper": [
        "pick.smooth_sigma_voxels=2", "pick.sigma_voxels=5", "encoder.code=relu", "encoder.l1=1e-4",
        "encoder.batch_size=8", "encoder.augment=false", "encoder.invariant_weight=0",
        "patch.smooth_sigma_voxels=2", "segmenter.shift=0", "segmenter.ignore_unselected=false",
        "segmenter.background_share=0", "segment.mode=picks", "segment.class_of=network",
    ],
}  # fmt: skip

WIDTHS = ("pick.smooth_sigma_voxels=", "pick.sigma_voxels=")  # they and a radius exclude each other


@click.command("init")
@click.argument("run")
@click.argument("patterns", nargs=-1)
@click.option("--voxel-size", type=float,
              help="Voxel size in ångström of the new files, instead of what their headers say.")  # fmt: skip
@click.option("--contrast", type=click.Choice(["auto", "dark", "bright"]), help="How objects look.")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="cpu", show_default=True,
              help="What the run will work on; settings given besides count more.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="TABLE.KEY=VALUE", help="Write a parameter.")
def init_command(
    run: str,
    patterns: tuple[str, ...],
    voxel_size: float | None,
    contrast: str | None,
    preset: str,
    settings: tuple[str, ...],
) -> int:
    """Write RUN/run.toml for the files that PATTERNS name; again, to add files or change parameters."""
    from cryoscale.pipeline.setup import add_inputs, initial_config, write_run

    words = [*_preset(preset, run, settings)]
    if contrast is not None:
        words.append(f"ingest.contrast={contrast}")
    config = initial_config(run, [*words, *settings])
    if not patterns and (not config.inputs or voxel_size is not None):
        raise click.UsageError("which files? Give paths or patterns, such as 'recon/*.mrc'.")
    added: list[str] = []
    if patterns:
        config, added = add_inputs(config, list(patterns), voxel_size_angstrom=voxel_size)
    write_run(run, config)
    for line in _voxel_sizes(config):
        click.echo(line)
    click.echo(f"{Path(run)}: {len(config.inputs)} tomograms ({len(added)} new). Next: cryoscale run {run}")
    return 0


def _preset(preset: str, run: str, settings: tuple[str, ...]) -> list[str]:
    """Return the settings of a preset; a radius, given now or before, takes its widths of filters away."""
    from cryoscale.pipeline.setup import initial_config

    words = PRESETS[preset]
    if not any(word.startswith(WIDTHS) for word in words):
        return words
    given = [word for word in settings if word.partition("=")[0].strip() == "pick.radius_angstrom"]
    if given:
        radius = given[-1].partition("=")[2].strip().lower() != "none"
    else:
        radius = initial_config(run, []).pick.radius_angstrom is not None
    return [
        f"{word.partition('=')[0]}=none" if radius and word.startswith(WIDTHS) else word for word in words
    ]


def _voxel_sizes(config: RunConfig) -> list[str]:
    """Say which voxel sizes count instead of the headers', and for how many tomograms."""
    from collections import Counter

    whole = config.ingest.voxel_size_angstrom
    sizes = Counter(source.voxel_size_angstrom or whole for source in config.inputs)
    if set(sizes) == {None}:
        return []
    lines = []
    for size, count in sorted(sizes.items(), key=lambda pair: pair[0] or 0.0):
        origin = f"{size:g} Å, as given" if size else "from the header"
        lines.append(f"voxel size {origin}: {count} tomogram{'s' * (count > 1)}")
    return lines
