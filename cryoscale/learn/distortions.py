"""What an augmentation changes besides turning: grey values, the missing wedge, any angle in a plane.

Everything random is drawn from the generator that is given: numbers of an item by numpy, noise by a generator
of torch on the device, seeded by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as torch_f
from torch import Tensor

from cryoscale.errors import ConfigurationError
from cryoscale.learn.targets import IGNORED, Targets, each_image


@dataclass(frozen=True)
class Intensity:
    """Change gain, offset and noise of every item of a batch; targets stay as they are.

    Attributes
    ----------
    gain : float
        Items are multiplied by a number between 1 / (1 + gain) and 1 + gain, even on a logarithmic scale.
    offset : float
        Largest amount that is added or taken away, in standard deviations of the item.
    noise : float
        Largest standard deviation of white noise that is added, in those of the item.
    """

    gain: float = 0.2
    offset: float = 0.2
    noise: float = 0.2

    def __post_init__(self) -> None:
        for name in ("gain", "offset", "noise"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"Intensity: {name} = {getattr(self, name)} must not be negative.")

    def __call__(self, inputs: Tensor, targets: Targets, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        """Change the inputs (N, ...)."""
        each_item = (-1, *(1,) * (inputs.ndim - 1))
        drawn_3N = rng.uniform(size=(3, len(inputs))).astype(np.float32)
        drawn = torch.from_numpy(drawn_3N).to(inputs.device).view(3, *each_item)
        sd = inputs.flatten(1).std(dim=1, correction=0).view(each_item)
        gain = torch.exp((2 * drawn[0] - 1) * math.log1p(self.gain))
        offset = (2 * drawn[1] - 1) * self.offset * sd
        changed = inputs * gain + offset
        if self.noise:
            source = torch.Generator(inputs.device).manual_seed(int(rng.integers(2**63)))
            noise = torch.randn(inputs.shape, generator=source, device=inputs.device)
            changed += noise * (drawn[2] * self.noise * sd)
        return changed, targets


@dataclass(frozen=True)
class Wedge:
    """Take away the waves that the tomogram's tilt series has not measured: ±60 degrees about y if not told.

    A turned patch has its own missing wedge in a direction where no microscope puts it, and carries waves
    where there should be none. With this after the turn no patch has waves in the tomogram's wedge, as none
    has that the network is used on. The turned wedge stays empty too: what was not measured is not there.
    Targets stay as they are: the recovered density has no wedge.

    Attributes
    ----------
    degrees : float
        Largest tilt to either side; 90 means no wedge.
    tilt_axis : {"y", "x"}
        The beam goes along z. With y as the axis waves (kz, ky, kx) were measured where
        |kz| <= tan(degrees) |kx|, as in `cryoscale.simulate.transfer.wedge_mask`.
    """

    degrees: float = 60.0
    tilt_axis: Literal["y", "x"] = "y"

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 90 or self.tilt_axis not in ("y", "x"):
            raise ConfigurationError(
                f"Wedge: degrees = {self.degrees} must be above 0 and at most 90,"
                f" tilt_axis = {self.tilt_axis!r} must be y or x."
            )

    def __call__(self, inputs: Tensor, targets: Targets, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        """Filter the inputs (N, C, Z, Y, X); nothing is drawn."""
        if self.degrees == 90:
            return inputs, targets
        across = -1 if self.tilt_axis == "y" else -2
        measured = self.mask(inputs.shape[-3], inputs.shape[across], inputs.device)
        waves = torch.fft.rfft2(inputs, dim=(-3, across))
        waves *= measured[:, None, :] if across == -1 else measured[:, :, None]
        sizes = (inputs.shape[-3], inputs.shape[across])
        return torch.fft.irfft2(waves, s=sizes, dim=(-3, across)), targets

    def mask(self, n_z: int, n_across: int, device: torch.device | None = None) -> Tensor:
        """Give which waves were measured, (n_z, n_across // 2 + 1), in the layout of `torch.fft.rfft2`."""
        kz = torch.fft.fftfreq(n_z, device=device, dtype=torch.float64).abs()[:, None]
        across = torch.fft.rfftfreq(n_across, device=device, dtype=torch.float64)[None, :]
        measured: Tensor = kz <= math.tan(math.radians(self.degrees)) * across + 1e-9
        return measured


def random_rotations(
    inputs_NCYX: Tensor, targets_N: Targets, rng: np.random.Generator
) -> tuple[Tensor, Targets]:
    """Rotate every slice of a batch by its own angle about its centre, and its targets alike.

    Inputs are interpolated bilinearly, and reflected beyond their edges. Label images take the nearest pixel;
    what comes from outside is `IGNORED` there.
    """
    n, _, n_y, n_x = inputs_NCYX.shape
    angles = torch.from_numpy(rng.uniform(0, 2 * math.pi, size=n).astype(np.float32))
    matrix_N23 = torch.zeros(n, 2, 3)
    matrix_N23[:, 0, 0] = matrix_N23[:, 1, 1] = torch.cos(angles)
    matrix_N23[:, 0, 1] = -torch.sin(angles) * (n_y / n_x)  # its coordinates go from -1 to 1 along each side
    matrix_N23[:, 1, 0] = torch.sin(angles) * (n_x / n_y)
    grid_NYX2 = torch_f.affine_grid(matrix_N23.to(inputs_NCYX.device), [n, 1, n_y, n_x], align_corners=False)

    def sampled(values_NCYX: Tensor, mode: str, beyond: str) -> Tensor:
        return torch_f.grid_sample(
            values_NCYX.float(), grid_NYX2, mode=mode, padding_mode=beyond, align_corners=False
        )

    inside_NYX = sampled(inputs_NCYX.new_ones(n, 1, n_y, n_x), "nearest", "zeros")[:, 0] > 0

    def rotated(values: Tensor) -> Tensor:
        if values.is_floating_point():
            return sampled(values, "bilinear", "reflection")
        labels = sampled(values[:, None], "nearest", "border")[:, 0].to(values.dtype)
        return labels.masked_fill(~inside_NYX, IGNORED)

    return rotated(inputs_NCYX), each_image(targets_N, rotated)
