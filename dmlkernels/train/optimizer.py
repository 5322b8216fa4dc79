"""AdamW with a one-cycle schedule, and what is different for the proxies of a loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

WEIGHT_DECAY = 1e-4  # of the network
PROXY_LR = 3.0  # times the network's


def build(network: nn.Module, loss: nn.Module, lr: float, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Optimizer of the network and of what the loss learns, and its schedule over so many steps.

    Proxies are normalised in the loss: a decay would change how fast they turn, and nothing else.
    """
    groups = [
        {"params": list(network.parameters()), "weight_decay": WEIGHT_DECAY},
        {"params": list(loss.parameters()), "weight_decay": 0.0, "lr": PROXY_LR * lr},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    return optimizer, LambdaLR(optimizer, one_cycle(steps))


def one_cycle(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step: a cosine up over the first 30 %, a cosine down to 1e-3 after it."""
    rise = max(1.0, 0.3 * steps)

    def factor(step: int) -> float:
        if step < rise:
            return 1.0 - 0.96 * 0.5 * (1.0 + math.cos(math.pi * step / rise))
        return 1e-3 + 0.999 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))

    return factor
