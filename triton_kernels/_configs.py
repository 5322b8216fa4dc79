"""Block sizes of the kernels on pairs: pinned, never searched for."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from dmlkernels import _triton

INTERPRETED = _triton.interpreted()  # what a program costs hardly depends on its size then


class Config(NamedTuple):
    block_m: int  # rows of a tile; a divisor of the 128 of `tile_active`
    block_n: int  # columns of a tile
    block_k: int  # features of one step of a product
    block_d: int  # features that one program sums up in a backward
    num_warps: int
    num_stages: int

    def tile(self) -> dict[str, int]:
        """Launch arguments of a kernel on tiles of pairs."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def power_of_two(n: int, low: int, high: int) -> int:
    """The power of two from n up, within [low, high]."""
    return min(high, max(low, 1 << max(n - 1, 0).bit_length()))


def row_block() -> int:
    """Rows of one program of the kernels that go over rows."""
    return 128 if INTERPRETED else 32


def triplet_block(semihard: bool) -> dict[str, int]:
    """Positives and negatives that a program of triplet compares at a time.

    Each thread keeps what it knows of all the positives, which of 8 semi-hard ones is more than its registers hold.
    Their loops keep more barriers than there are registers for, unless one warp needs none.
    """
    if INTERPRETED:
        return {"BLOCK_P": 64, "BLOCK_N": 128, "num_warps": 4}
    p, n, warps = (2, 64, 1) if semihard else (8, 128, 4)
    return {"BLOCK_P": p, "BLOCK_N": n, "num_warps": warps}


@functools.cache
def _capability(index: int | None) -> int:
    if torch.version.hip is not None:
        return 0  # numbers of its own
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def capability(device: torch.device) -> int:
    """Compute capability, 90 for 9.0; of tensors without storage that of the newest GPUs."""
    return _capability(device.index) if device.type == "cuda" else 100


def choose(kernel: str, dtype: torch.dtype, width: int, device: torch.device, square: bool = False) -> Config:
    """Block sizes for rows of `width` features in products of `dtype`; `square`: as many columns as rows."""
    if INTERPRETED:
        return Config(128, 128, power_of_two(width, 16, 128), power_of_two(width, 16, 128), 4, 1)
    if dtype == torch.float64:
        return Config(32, 32, 16 if kernel == "pair_loss_fwd" else 32, 32, 8, 2)
    if dtype == torch.float32 and capability(device) // 10 not in (9, 10):
        # mma.sync takes both operands from registers, three times as many where float32 is split; a contest of rows
        # that tie needs its own.
        block_n = 16 if kernel in ("positives", "negatives", "triplet_fwd") else 32
        return Config(32, block_n, 16, 16 if kernel == "pairwise_bwd" else 32, 8, 2)
    if dtype == torch.float32 and square:
        return Config(32, 32, 32, 32, 8, 2)
    block_n, block_d = (64, 64) if square else _COLUMNS.get(kernel, (32 if dtype == torch.float32 else 64, 64))
    if dtype == torch.float16 and kernel in ("pair_loss_bwd", "pairwise_bwd"):
        block_d = 32  # weights are multiplied in float32, with three times the operands
    return Config(64, block_n, 32, block_d, 4 if kernel == "negatives" else 8, 2)


def of_near_pairs(config: Config) -> Config:
    """For the tiles that hold near pairs: smaller, since a search for them takes registers."""
    side = config.block_m if INTERPRETED and config.block_m == 128 else min(config.block_m, 32)
    return config._replace(block_m=side, block_n=side, num_warps=4)


# Columns of a tile, and features of a sum, of kernels that keep more than a tile of distances between tiles, or decide
# ties: 8 warps with 64² pairs of float32 would spill registers (bench/report/triton_resources.py).
_COLUMNS = {
    "pairwise_bwd": (32, 32),
    "pair_loss_fwd": (32, 64),
    "pair_loss_bwd": (16, 32),
    "distance_weighted_fwd": (32, 64),
    "positives": (16, 64),
    "negatives": (16, 64),
}


def dot_precision(precision: str) -> str:
    """`input_precision` of tl.dot for float32 rows. Tensor cores have none in IEEE: three of TF32 are as good.

    The matrix cores of ROCm's GPUs have it, and every setting is a lower bound of the accuracy.
    """
    if torch.version.hip is not None:
        return "ieee"
    return {"ieee": "tf32x3", "tf32x3": "tf32x3", "tf32": "tf32", "bf16": "tf32"}[precision]


def rounding(operand: torch.dtype, rows: torch.dtype, precision: str) -> str:
    """How weights are rounded for a product with operand rows (`_pair.rounded_weights`)."""
    if operand == torch.bfloat16:
        return "bf16" if rows == torch.bfloat16 and precision in ("ieee", "tf32x3") else "bf16x1"
    return "tf32" if operand == torch.float32 and precision == "tf32" else "none"


PROGRAMS = 264  # two for each multiprocessor of an H100
MOST_PARTS = 16


def parts(programs: int, tiles: int) -> int:
    """Into how many parts the columns are cut where few row tiles would leave most of a GPU idle."""
    return max(1, min(MOST_PARTS, PROGRAMS // max(programs, 1), tiles))


SYMMETRIC_FROM = 4096  # fewer rows make fewer tiles than a GPU has room for, and atomics cost more than they save
MOST_PAIRS = 32 * 32 * (2**31 - 1)  # tiles along the one axis of a grid that has room for more than 65,535 programs


def by_tiles(rows: int, columns: int, deterministic: bool) -> bool:
    """Whether a pair loss runs one program a tile, with atomics, or one a tile of rows, without."""
    return not deterministic and rows >= SYMMETRIC_FROM and rows * columns <= MOST_PAIRS
