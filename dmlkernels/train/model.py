"""The networks of the training job: a small one that trains on a laptop, and any network of timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkernels.data import ImageSet
from dmlkernels.train.config import JobError, require

EVALUATION_BATCH = 512
GRID = 4  # side of the map before the linear layer, which still has to know where a stroke is


class SmallNet(nn.Module):
    """Four 3×3 convolutions (24, 48, 96, 128), a linear layer and a final batch norm over the features.

    The first three convolutions halve the image; with pooling in their place the network is three times slower on a CPU
    and no better on glyphs. The final batch norm centres the features, which keeps a random network away from collapse.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, stride in ((24, 2), (48, 2), (96, 2), (128, 1)):
            layers += [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(True),
            ]
            channels = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(channels * GRID**2, features, bias=False), nn.BatchNorm1d(features))
        # Channels-last takes a third off the time of these convolutions on a CPU.
        self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:  # (b, channels, H, W) in [0, 1] -> (b, features)
        return self.head(self.body((images - 0.5).contiguous(memory_format=torch.channels_last)))


class TimmNet(nn.Module):
    """A timm backbone without its classifier, a linear layer and a final batch norm."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, channels: int, features: int, pretrained: bool) -> None:
        super().__init__()
        timm = require("timm", "timm")
        try:
            self.body = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels)
        except (RuntimeError, ValueError) as error:
            raise JobError(f"--model timm:{name}: {str(error).strip().splitlines()[0]}") from None
        settings = getattr(self.body, "pretrained_cfg", None) or {}
        for statistic, otherwise in (("mean", 0.5), ("std", 0.25)):
            values = torch.tensor(settings.get(statistic, (otherwise,)), dtype=torch.float32)
            values = values if len(values) == channels else values.mean().expand(channels)
            self.register_buffer(statistic, values.reshape(1, channels, 1, 1).clone())
        self.head = nn.Sequential(nn.Linear(self.body.num_features, features, bias=False), nn.BatchNorm1d(features))

    def forward(self, images: Tensor) -> Tensor:  # (b, channels, H, W) in [0, 1] -> (b, features)
        return self.head(self.body((images - self.mean) / self.std))


def build(name: str, channels: int, features: int, pretrained: bool = False) -> nn.Module:
    """The network of ``--model name`` from images of so many channels to so many features."""
    if name == "small":
        return SmallNet(channels, features)
    kind, _, network = name.partition(":")
    if kind != "timm" or not network:
        raise JobError(f"--model {name}: expected small or timm:NAME")
    return TimmNet(network, channels, features, pretrained)


@torch.no_grad()
def embed(network: nn.Module, images: ImageSet, device: torch.device) -> Tensor:
    """Normalised embeddings (n, D) of a whole image set, on the CPU."""
    network.eval()
    chunks = torch.arange(len(images)).split(EVALUATION_BATCH)
    return torch.cat([F.normalize(network(images.batch(chunk).to(device))).cpu() for chunk in chunks])
