"""The band-pass in front of the small 2D network, with an end: a tile of a slice sees what the slice sees.

Shapes: N items, C channels (slices beside each other), U and V the two axes across the slices.

    halo |  core of a tile  | halo         the kernel ends at the halo: nothing beyond it plays a part

Chen et al. 2017 (doi:10.1038/nmeth.4405) prepare whole tomograms by Fourier filters of EMAN2: a Gaussian
low-pass at 0.25 of the sampling frequency, a Gaussian high-pass at 5 Fourier pixels, z-scores, a clamp at 3
sd; and, in front of the network, a third of that. A Fourier filter of a whole slice has no end, and 5 Fourier
pixels is another length in each tomogram. Here slices are filtered, each by itself, with Gaussians in real
space of the same falloff, cut where they are small; the length of the high-pass is fixed when a network is
trained, and written on its card with the mean and the sd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError

NAME = "band-pass"
LOW_PASS = 0.25  # of the sampling frequency, where the Gaussian has fallen to exp(-1/2); Chen et al. 2017
HIGH_PASS = 5.0  # Fourier pixels of a slice; Chen et al. 2017
CLAMP = 3.0  # sd; Chen et al. 2017
NARROW_ENDS, WIDE_ENDS = 4.0, 3.0  # sigma where the kernels are cut: 3e-4 and 1e-2 of their middle
WIDEST = 24.0  # voxels: slices of 750 and more are high-passed as those of 750, or halos would outgrow tiles


def low_pass_sigma(frequency: float = LOW_PASS) -> float:
    """Return the width (voxels) of the Gaussian whose transform is exp(-1/2) at a frequency (1/voxel)."""
    return 1.0 / (2.0 * math.pi * frequency)


def high_pass_sigma(sides: Sequence[int], pixels: float = HIGH_PASS) -> float:
    """Return the width (voxels) of the Gaussian that is taken off slices of two sides.

    A frequency of `pixels` Fourier pixels is `pixels / side` per voxel; the side is the geometric mean of
    both, since the filter is the same in all directions. At most `WIDEST`.
    """
    side = math.sqrt(sides[0] * sides[1])
    return min(WIDEST, side / (2.0 * math.pi * pixels))


def band_pass_halo(low_sigma: float, high_sigma: float) -> int:
    """Return how far the band-pass looks, voxels. Nothing beyond plays a part: its kernels end there."""
    return max(_reaches(low_sigma, math.hypot(low_sigma, high_sigma)))


class SliceFilter(nn.Module):
    """Band-pass, scale and clamp slices: (N, C, U, V) to the same shape, each channel by itself.

    Parameters
    ----------
    low_sigma, high_sigma : float
        Widths of the low-pass and of what is taken off, voxels (`low_pass_sigma`, `high_pass_sigma`).
    mean, sd : float
        Of the filtered density of the training sample; sd > 0.
    clamp : float
        Values beyond so many sd are set to it; the result is divided by it, so it lies from -1 to 1.

    Attributes
    ----------
    halo : int
        How far a pixel looks. Nearer to a face of the input the edge is repeated, so a caller of tiles gives
        them that much more and drops it.

    Raises
    ------
    ConfigurationError
        A number that is not positive, or a high-pass that is narrower than the low-pass.

    Notes
    -----
    Low-pass and high-pass in one are the difference of two Gaussians of widths l and sqrt(l^2 + h^2), because
    Gaussians compose. Each is separable, sampled at the voxels, cut at `halo` and scaled to sum 1, so a
    constant becomes nothing but rounding.
    """

    narrow_K: Tensor
    wide_K: Tensor

    def __init__(
        self, low_sigma: float, high_sigma: float, mean: float = 0.0, sd: float = 1.0, clamp: float = CLAMP
    ) -> None:
        super().__init__()
        if not (0 < low_sigma < high_sigma and sd > 0 and clamp > 0 and math.isfinite(mean + sd + clamp)):
            raise ConfigurationError(
                f"low_sigma = {low_sigma}, high_sigma = {high_sigma}, mean = {mean}, sd = {sd} and"
                f" clamp = {clamp} are no band-pass of slices: widths rise, sd and clamp are positive."
            )
        self.low_sigma, self.high_sigma = low_sigma, high_sigma
        self.mean, self.sd, self.clamp = mean, sd, clamp
        composed = math.hypot(low_sigma, high_sigma)
        self._reaches = _reaches(low_sigma, composed)
        self.halo = max(self._reaches)
        self.register_buffer("narrow_K", _kernel(low_sigma, self._reaches[0]), persistent=False)
        self.register_buffer("wide_K", _kernel(composed, self._reaches[1]), persistent=False)

    def band(self, slices_NCUV: Tensor) -> Tensor:
        """Band-pass alone, in the units of the input."""
        narrow, wide = self._reaches
        return _smoothed(slices_NCUV, self.narrow_K, narrow) - _smoothed(slices_NCUV, self.wide_K, wide)

    def forward(self, slices_NCUV: Tensor) -> Tensor:
        """Filter, scale, clamp."""
        scaled_NCUV = (self.band(slices_NCUV) - self.mean) / self.sd
        return scaled_NCUV.clamp(-self.clamp, self.clamp) / self.clamp

    def with_statistics(self, mean: float, sd: float) -> SliceFilter:
        """Return the same filter, scaled by other statistics."""
        return SliceFilter(self.low_sigma, self.high_sigma, mean, sd, self.clamp)

    @property
    def card(self) -> dict[str, Any]:
        """What a model card says of it; `preprocessing_of` reads it."""
        return {
            "name": NAME, "low_sigma_voxels": self.low_sigma, "high_sigma_voxels": self.high_sigma,
            "mean": self.mean, "sd": self.sd, "clamp_sd": self.clamp,
        }  # fmt: skip


def preprocessing_of(card: Mapping[str, Any]) -> SliceFilter | None:
    """Make what a model card says that comes in front of its network.

    Parameters
    ----------
    card : mapping
        A whole model card, of which the table `preprocessing` counts; none, or an empty one, means nothing.

    Raises
    ------
    ConfigurationError
        The table asks for something unknown, or a number is missing.
    """
    table = card.get("preprocessing") or {}
    if not table:
        return None
    try:
        if table["name"] != NAME:
            raise ConfigurationError(
                f"the model card asks for the preprocessing '{table['name']}', which is unknown.",
                remedy=f"Only '{NAME}' is known: use the version of cryoscale that trained the model.",
            )
        numbers = [
            float(table[key]) for key in ("low_sigma_voxels", "high_sigma_voxels", "mean", "sd", "clamp_sd")
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the table 'preprocessing' of the model card is incomplete: {error}."
        ) from error
    return SliceFilter(*numbers)


def band_pass_fourier(
    slice_UV: npt.ArrayLike, low_pass: float = LOW_PASS, high_pass: float = HIGH_PASS
) -> npt.NDArray[np.float32]:
    """Band-pass a whole slice in Fourier space, as it was done first: the reference, periodic at the faces.

    Parameters
    ----------
    slice_UV : (U, V) float
        A slice.
    low_pass : float
        Frequency, 1/voxel.
    high_pass : float
        Frequency, Fourier pixels of the slice (of the geometric mean of its sides).

    Returns
    -------
    band_UV : (U, V) float32
        ``exp(-f^2 / 2 l^2) (1 - exp(-f^2 / 2 h^2))`` of the slice.
    """
    image = np.asarray(slice_UV, dtype=np.float64)
    f_U, f_V = scipy.fft.fftfreq(image.shape[0])[:, None], scipy.fft.rfftfreq(image.shape[1])[None]
    squared = f_U**2 + f_V**2
    high = high_pass / math.sqrt(image.shape[0] * image.shape[1])
    passed = np.exp(-squared / (2 * low_pass**2)) * -np.expm1(-squared / (2 * high**2))
    spectrum = scipy.fft.rfft2(image, workers=1) * passed
    return np.asarray(scipy.fft.irfft2(spectrum, s=image.shape, workers=1), dtype=np.float32)


def _reaches(narrow: float, wide: float) -> tuple[int, int]:
    return math.ceil(NARROW_ENDS * narrow), math.ceil(WIDE_ENDS * wide)


def _kernel(sigma: float, reach: int) -> Tensor:
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return torch.from_numpy((weights / weights.sum()).astype(np.float32))


def _smoothed(slices_NCUV: Tensor, kernel_K: Tensor, reach: int) -> Tensor:
    """Convolve along U, then along V; the edge is repeated."""
    n, c, u, v = slices_NCUV.shape
    image = slices_NCUV.reshape(n * c, 1, u, v)
    along_u = torch_f.pad(image, (0, 0, reach, reach), mode="replicate")
    image = torch_f.conv2d(along_u, kernel_K[None, None, :, None])
    along_v = torch_f.pad(image, (reach, reach, 0, 0), mode="replicate")
    return torch_f.conv2d(along_v, kernel_K[None, None, None]).reshape(n, c, u, v)
