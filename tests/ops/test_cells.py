from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Box, Grid, Zyx, round_up
from cryoscale.ops.cells import Cells

shapes = st.tuples(*[st.integers(1, 90)] * 3)
fitted = st.builds(
    lambda shape, largest, margin, unit, least: Cells.fitted(
        shape, largest=4 * largest, margin=4 * margin, unit=4 * unit, least=(least, 4, 1)
    ),
    shapes, st.integers(1, 9), st.integers(0, 3), st.integers(1, 12), st.integers(1, 40),
)  # fmt: skip


@given(cells=fitted)
def test_cells_cover_the_volume_once_and_windows_hold_them_with_their_margin(cells: Cells) -> None:
    whole = Box.whole(cells.shape)
    covered = np.zeros(cells.shape, int)
    count = 0
    for cell, window in cells.overlapping(whole):
        count += 1
        covered[cell.slices] += 1
        assert window.shape == cells.size
        assert window.contains(cell)
        assert all(a % 4 == 0 and a >= 0 for a in window.start)
        for axis, n in enumerate(cells.shape):
            assert window.start[axis] <= max(0, cell.start[axis] - cells.margin)
            assert window.stop[axis] >= min(n, cell.stop[axis] + cells.margin)
            if window.stop[axis] > n:  # by less than the alignment, or because the volume is thinner
                assert window.stop[axis] == max(round_up(n, 4), cells.size[axis])
    assert covered.min() == covered.max() == 1
    assert cells.cost == pytest.approx(count * cells.size.voxels / whole.voxels)


@given(cells=fitted, edge=st.tuples(*[st.integers(1, 60)] * 3))
def test_a_block_sees_the_cells_of_the_whole(cells: Cells, edge: tuple[int, int, int]) -> None:
    everywhere = dict(cells.overlapping(Box.whole(cells.shape)))
    assume(len(everywhere) < 3000)
    for core in list(Grid.of(cells.shape, edge).boxes())[:20]:
        found = list(cells.overlapping(core))
        wanted = {cell: window for cell, window in everywhere.items() if not cell.intersect(core).empty}
        assert dict(found) == wanted
        assert [cell for cell, _ in found] == sorted(cell for cell, _ in found)
    assert not list(cells.overlapping(Box.of(cells.shape, [n + 5 for n in cells.shape])))


def test_units_share_no_cell() -> None:
    cells = Cells.fitted((600, 300, 256), largest=96, margin=8, unit=256)
    blocks = Grid.of(cells.shape, 256).boxes()
    owners = [cell for block in blocks for cell, _ in cells.overlapping(block)]
    assert len(owners) == len(set(owners))


@pytest.mark.parametrize(
    ("shape", "cell", "size"),
    [
        ((200, 512, 928), (100, 128, 88), (108, 144, 104)),  # two of 100: not 128 and a rest of 72
        ((64, 128, 129), (64, 128, 68), (64, 128, 76)),
        ((10, 4, 130), (12, 4, 68), (12, 4, 76)),
    ],
)
def test_cells_fit_the_volume(shape: tuple[int, ...], cell: tuple[int, ...], size: tuple[int, ...]) -> None:
    cells = Cells.fitted(shape, largest=128, margin=8, unit=256)
    assert [min(c, round_up(n, 4)) for c, n in zip(cells.cell, shape, strict=True)] == list(cell)
    assert cells.size == size


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="divide by 4"):
        Cells(Zyx(8, 8, 8), Zyx(6, 4, 4), 4, 8)
    with pytest.raises(ConfigurationError, match="above 0"):
        Cells(Zyx(8, 0, 8), Zyx(4, 4, 4), 4, 8)
