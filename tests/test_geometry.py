"""Boxes, grids, orders and lengths against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.errors import LayoutError
from cryoscale.geometry import (
    Block,
    Box,
    Grid,
    Zyx,
    check_aligned,
    fast_length,
    morton_code,
    pick_order,
    round_up,
    voxels_of,
)
from cryoscale.testing.strategies import boxes, shapes


@given(shapes(most=18), shapes(most=9), shapes(least=0, most=6))
def test_cores_tile_the_volume_exactly_once(shape: Zyx, cell: Zyx, halo: Zyx) -> None:
    count = np.zeros(shape, np.int32)
    blocks = list(Grid.of(shape, cell).blocks(halo, level=3))
    whole = Box.whole(shape)
    for number, block in enumerate(blocks):
        assert block.index == number
        assert block.level == 3
        count[block.core.slices] += 1
        assert whole.contains(block.read)
        assert block.read.contains(block.core)
        for low, high, start, stop, h, n in zip(
            block.read.start, block.read.stop, block.core.start, block.core.stop, halo, shape, strict=True
        ):
            assert (low, high) == (max(0, start - h), min(n, stop + h))
    assert (count == 1).all()
    assert len(blocks) == len(Grid.of(shape, cell)) == Grid.of(shape, cell).counts.voxels


@given(shapes(most=30), shapes(most=11), boxes(low=-8, high=40))
def test_overlapping_cells_are_those_that_share_a_voxel(shape: Zyx, cell: Zyx, box: Box) -> None:
    grid = Grid.of(shape, cell)
    assert list(grid.overlapping(box)) == [c for c in grid.boxes() if not c.intersect(box).empty]


@pytest.mark.parametrize(("shape", "cell"), [((0, 4, 4), 2), ((4, 4, 4), 0), ((4, 4, 4), (2, -1, 2))])
def test_grid_refuses_extents_below_one(shape: tuple[int, ...], cell: int) -> None:
    with pytest.raises(LayoutError):
        Grid.of(shape, cell)


def voxels(box: Box) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


@given(boxes(low=-4, high=5), boxes(low=-4, high=5))
def test_boxes_are_sets_of_voxels(one: Box, other: Box) -> None:
    shared = one.intersect(other)
    assert voxels(shared) == voxels(one) & voxels(other)
    assert shared.voxels == len(voxels(shared))
    assert min(shared.shape) >= 0
    assert shared.empty == (not voxels(shared))
    if one.contains(other):
        assert voxels(other) <= voxels(one)


@given(boxes(low=0, high=9), shapes(least=-5, most=5))
def test_shift_and_relative_undo_each_other(box: Box, offset: Zyx) -> None:
    assert box.shift(offset).relative_to(offset) == box
    assert box.shift(offset).shape == box.shape


def test_slices_cut_the_box() -> None:
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    box = Box.of((1, 0, 2), (3, 5, 4))
    assert array[box.slices].shape == box.shape
    assert array[box.slices][0, 0, 0] == array[1, 0, 2]


def test_zyx_of_one_number_three_or_nonsense() -> None:
    assert Zyx.of(np.int64(3)) == (3, 3, 3)
    assert Zyx.of([1, 2, 3]).voxels == 6
    with pytest.raises(LayoutError):
        Zyx.of([1, 2])


def test_rows_of_a_block() -> None:
    assert Block.of_rows(2, 8192, 9000).rows == (8192, 9000)


@given(st.integers(0, 10**6), st.integers(1, 999))
def test_round_up_is_the_smallest_multiple(value: int, unit: int) -> None:
    rounded = round_up(value, unit)
    assert rounded % unit == 0
    assert value <= rounded < value + unit


@given(shapes(most=24), shapes(most=9), boxes(low=-2, high=26))
def test_aligned_means_a_union_of_whole_cells(shape: Zyx, unit: Zyx, core: Box) -> None:
    inside = not core.empty and Box.whole(shape).contains(core)
    whole_cells = inside and all(core.contains(cell) for cell in Grid.of(shape, unit).overlapping(core))
    if whole_cells:
        check_aligned(core, unit, shape)
    else:
        with pytest.raises(LayoutError):
            check_aligned(core, unit, shape)


def test_every_union_of_cells_is_aligned() -> None:
    # the property above finds few aligned boxes by chance
    shape, unit = Zyx(5, 7, 9), Zyx(2, 3, 4)
    edges = [[*range(0, n, u), n] for n, u in zip(shape, unit, strict=True)]
    spans = [[(a, b) for a, b in itertools.combinations(e, 2)] for e in edges]
    for (z0, z1), (y0, y1), (x0, x1) in itertools.product(*spans):
        check_aligned(Box.of((z0, y0, x0), (z1, y1, x1)), unit, shape)


def slow_morton(z: int, y: int, x: int) -> int:
    code = 0
    for bit in range(21):
        for place, value in enumerate((x, y, z)):
            code |= (value >> bit & 1) << (3 * bit + place)
    return code


@given(st.lists(st.tuples(*[st.integers(0, 2**21 - 1)] * 3), max_size=20))
def test_morton_code_interleaves_bits(cells: list[tuple[int, int, int]]) -> None:
    array = np.array(cells, np.int64).reshape(-1, 3)
    assert morton_code(array).tolist() == [slow_morton(*cell) for cell in cells]


@pytest.mark.parametrize("bad", [-1, 2**21])
def test_morton_code_refuses_what_it_cannot_hold(bad: int) -> None:
    with pytest.raises(LayoutError):
        morton_code(np.array([[0, bad, 0]]))


@given(
    st.lists(st.tuples(*[st.floats(-20, 900, width=32)] * 3), max_size=30, unique=True),
    st.randoms(use_true_random=False),
    st.sampled_from([1.0, 7.84, 31.36]),
    st.sampled_from([1, 16, 128]),
)
def test_pick_order_does_not_depend_on_the_input_order(positions, random, voxel, tile) -> None:
    array = np.array(positions, np.float64).reshape(-1, 3)
    order = pick_order(array, voxel, tile)
    assert sorted(order.tolist()) == list(range(len(array)))
    shuffled = array[random.sample(range(len(array)), len(array))]
    assert np.array_equal(shuffled[pick_order(shuffled, voxel, tile)], array[order])


def test_pick_order_goes_tile_by_tile() -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 400, (200, 3))
    ordered = positions[pick_order(positions, 2.0, 32)]
    tiles = [tuple(t) for t in (np.rint(ordered / 2.0) // 32).astype(int)]
    runs = [tile for tile, _ in itertools.groupby(tiles)]
    assert len(runs) == len(set(runs)), "a tile is visited twice"
    for tile, group in itertools.groupby(zip(tiles, ordered.tolist(), strict=True), key=lambda pair: pair[0]):
        inside = [p for _, p in group]
        assert inside == sorted(inside), tile


def smooth(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


SMOOTH = [n for n in range(1, 6000) if smooth(n)]


def test_fast_length_is_the_smallest() -> None:
    for minimum in [*range(1, 700), 1025, 2049, 4374, 4999, 5001]:
        assert fast_length(minimum) == next(n for n in SMOOTH if n >= minimum), minimum


def test_voxels_of_a_length() -> None:
    assert voxels_of(94.08, 31.36) == pytest.approx(3)
