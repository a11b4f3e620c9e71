"""Hypothesis strategies for shapes, boxes, configurations, and what people type into TOML files."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cryoscale.config import RunConfig
from cryoscale.config.run import SourceConfig
from cryoscale.config.sections import (
    ClusterConfig,
    EncoderConfig,
    ExecutionConfig,
    IngestConfig,
    PatchConfig,
    PickConfig,
    RunSection,
    SegmentConfig,
    SegmenterConfig,
)
from cryoscale.geometry import Box, Zyx

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,11}", fullmatch=True)
"""Names of tomograms and label volumes."""

SIZES = st.floats(0.1, 500.0)
"""Lengths in Å that microscopes and particles have."""


def shapes(*, least: int = 1, most: int = 48) -> st.SearchStrategy[Zyx]:
    """Triples of integers between two bounds, both included."""
    side = st.integers(least, most)
    return st.builds(Zyx, side, side, side)


@st.composite
def boxes(draw: st.DrawFn, *, low: int = 0, high: int = 32) -> Box:
    """Boxes with corners between two bounds; some are empty."""
    corner = st.integers(low, high)
    sides = [sorted((draw(corner), draw(corner))) for _ in range(3)]
    return Box.of([a for a, _ in sides], [b for _, b in sides])


def plain_toml(*, leaves: int = 12) -> st.SearchStrategy[Any]:
    """Any value that TOML can hold: what a person may write where something else belongs."""
    scalars = (
        st.booleans()
        | st.integers(-(2**40), 2**40)
        | st.floats()
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
        | st.dates()
    )
    keys = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
    return st.recursive(
        scalars, lambda x: st.lists(x, max_size=4) | st.dictionaries(keys, x, max_size=4), max_leaves=leaves
    )


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    """Draw valid configurations that differ from the defaults in many places."""
    chunk = draw(st.sampled_from([8, 16, 64, 128]))
    by_radius = draw(st.booleans())
    names = draw(st.lists(NAMES, max_size=3, unique_by=str.lower))
    side = st.sampled_from([4, 8, 16, 32])
    return RunConfig(
        run=RunSection(
            working_voxel_size_angstrom=draw(st.none() | SIZES),
            fit_tomograms=tuple(draw(st.lists(st.sampled_from(names), unique=True))) if names else (),
        ),
        ingest=IngestConfig(
            voxel_size_angstrom=draw(st.none() | SIZES),
            contrast=draw(st.sampled_from(["auto", "dark", "bright"])),
            chunk=chunk,
            shard=chunk * draw(st.integers(1, 4)),
        ),
        pick=PickConfig(
            radius_angstrom=draw(SIZES) if by_radius else None,
            sigma_voxels=None if by_radius else draw(st.none() | st.floats(0.5, 20)),
            threshold=draw(st.floats(-10, 10)),
            z_range=draw(st.sampled_from(["all", "auto", (3, 9)])),
            mask=draw(st.none() | st.text(max_size=10)),
        ),
        patch=PatchConfig(size_voxels=draw(side | st.tuples(side, side, side))),
        encoder=EncoderConfig(l1=draw(st.floats(0, 1)), augment=draw(st.booleans())),
        cluster=ClusterConfig(n_clusters=draw(st.integers(2, 500)), seed=draw(st.integers(0, 2**31 - 1))),
        segmenter=SegmenterConfig(level=draw(st.none() | st.floats(-20, -0.001))),
        segment=SegmentConfig(labels=draw(NAMES), overlap_voxels=draw(st.none() | st.integers(0, 40))),
        execution=ExecutionConfig(memory_budget=draw(st.sampled_from([None, "4GB", "512 MiB"]))),
        inputs=tuple(SourceConfig(name=name, path=f"/data/{name}.mrc") for name in names),
    )
