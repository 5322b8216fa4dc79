"""Random affine maps and noise for a whole batch of images at once, on the device where the batch is."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Augment:
    """Rotate, scale, shear, shift and (where asked) mirror every image on its own, then add Gaussian noise.

    Draws come from a CPU generator on any device, so that a run does not depend on where it computes.

    Args:
        degrees: largest rotation, either way.
        scale: largest relative change of each side's length.
        shear: largest horizontal shear.
        shift: largest shift, as a fraction of the side.
        noise: standard deviation of the noise, for images in [0, 1].
        flip: mirror half of the images.
    """

    degrees: float = 10.0
    scale: float = 0.12
    shear: float = 0.18
    shift: float = 0.06
    noise: float = 0.05
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count = images.shape[0]
        draws = 2.0 * torch.rand(count, 7, generator=generator) - 1.0
        angle = draws[:, 0] * math.radians(self.degrees)
        wide = 1.0 + self.scale * draws[:, 1]
        high = 1.0 + self.scale * draws[:, 2]
        if self.flip:
            wide = torch.where(draws[:, 3] < 0.0, -wide, wide)
        shear = self.shear * draws[:, 4]
        cos, sin = angle.cos(), angle.sin()
        # affine_grid's unit is half a side, hence the 2.
        first = torch.stack([wide * cos, high * (shear * cos - sin), 2.0 * self.shift * draws[:, 5]], dim=1)
        second = torch.stack([wide * sin, high * (shear * sin + cos), 2.0 * self.shift * draws[:, 6]], dim=1)
        theta = torch.stack([first, second], dim=1).to(images.device)  # (count, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        noise = torch.randn(images.shape, generator=generator)
        return moved + self.noise * noise.to(images.device)
