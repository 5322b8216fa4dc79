"""Rows and goals of the table on a GPU: the native kernels, the Triton kernels and their rivals, side by side."""

from __future__ import annotations

from typing import Any

from bench.kernels.cases import Case

BF16: dict[str, Any] = {"dtype": "bfloat16"}
TF32: dict[str, Any] = {"precision": "tf32"}
OURS = ("triton", "product")
EAGER = ("triton", "reference", "product")
# What pytorch-metric-learning computes is another loss than the paper's: see OPERATIONS["ranked_list_pml"].
PEER = ("triton", "peer", "product")

# The most wanted first: what is behind may not fit the time that `make gpu` has.
CASES = (
    Case("rll_bf16_128", "ranked_list", "dense", 16384, 128, rivals=OURS, **BF16),
    Case("rll_bf16_512", "ranked_list", "dense", 16384, 512, rivals=OURS, **BF16),
    Case("rll_tf32_512", "ranked_list", "dense", 16384, 512, rivals=EAGER, **TF32),
    Case("rll_float32", "ranked_list", "dense", 16384, 128, rivals=EAGER),
    Case("rll_sparse", "ranked_list", "sparse", 16384, 128, rivals=OURS, **BF16),
    Case("rll_collapsed", "ranked_list", "collapsed", 16384, 128, rivals=OURS, memory=False, **BF16),
    Case("rll_peer", "ranked_list_pml", "dense", 16384, 128, rivals=PEER),
    Case("rll_peer_tf32", "ranked_list_pml", "dense", 16384, 512, rivals=PEER, memory=False, **TF32),
    Case("nearest_positive", "nearest_positive", "dense", 16384, 512, rivals=EAGER),
    Case("nearest_positive_one_class", "nearest_positive", "dense", 16384, 512, rivals=OURS, classes=1, **BF16),
    Case("pairwise", "pairwise", "dense", 16384, 512, rivals=EAGER, **BF16),
    *(Case(name, name, "dense", 16384, 128, rivals=OURS, **BF16) for name in ("supcon", "contrastive", "ntxent")),
    Case("class_coding_rate", "class_coding_rate", "dense", 16384, 512, rivals=("triton", "reference", "mcr2_loop")),
    Case("cholesky_16", "cholesky", "dense", 65536, 16, rivals=("triton", "reference"), memory=False),
    Case("rll_spread", "ranked_list", "spread", 16384, 128, rivals=OURS, memory=False, **BF16),
    *(
        Case(
            f"rll_{count}_classes", "ranked_list", "dense", 16384, 128, rivals=OURS, memory=False, classes=count, **BF16
        )
        for count in (2, 10)
    ),
    Case("rll_gallery", "ranked_list", "dense", 1024, 128, gallery=131072, rivals=OURS, **BF16),
    Case("triplet_peer", "triplet", "dense", 16384, 128, rivals=PEER, memory=False),
    Case("supcon_float32", "supcon", "dense", 16384, 128, rivals=EAGER),
    Case("mine_hard", "mine_hard", "dense", 16384, 512, rivals=OURS, **BF16),
    Case("mine_semihard", "mine_semihard", "dense", 16384, 512, rivals=OURS, memory=False, **BF16),
    Case("coding_rate", "coding_rate", "dense", 16384, 128, rivals=("triton", "logdet"), memory=False),
    Case("spherical_expansion", "spherical_expansion", "dense", 4096, 512, rivals=("triton", "reference")),
    Case("proxy_anchor", "proxy_anchor", "dense", 16384, 512, rivals=("triton", "reference")),
    Case("soft_triple", "soft_triple", "dense", 16384, 512, rivals=("triton", "reference")),
    Case("rll_large", "ranked_list", "dense", 65536, 128, rivals=("triton",), **BF16),
    Case("rll_compiled", "ranked_list", "dense", 16384, 128, rivals=("compiled",), memory=False),
)

RLL = "RLL forward + backward"
CLASSES = "coding rate per class, 16384 × 512, 8 a class"
# title, case, part, rival, must, strong, stretch: as Goal has them
GOALS = (
    ("RLL forward / `t_gemm`, bf16, 16384 × 512, dense", "rll_bf16_512", "forward", "product", 1.15, 0.8, 0.6),
    ("RLL forward / `t_gemm`, bf16, 16384 × 128, dense", "rll_bf16_128", "forward", "product", 1.0, 0.75, 0.6),
    ("RLL forward / `t_gemm`, TF32, 16384 × 512, dense", "rll_tf32_512", "forward", "product", 1.15, 0.75, 0.58),
    (f"{RLL} / `t_gemm`, bf16, 16384 × 128, dense", "rll_bf16_128", "total", "product", 5, 3.5, 2.6),
    (f"{RLL} / `t_gemm`, bf16, 16384 × 512, dense", "rll_bf16_512", "total", "product", 5, 3.6, 2.9),
    (f"{RLL} / `t_gemm`, bf16, 16384 × 128, sparse", "rll_sparse", "total", "product", 2, 1.2, 0.8),
    # 14 times what dense data may take
    (f"{RLL} / `t_gemm`, bf16, 16384 × 128, collapsed", "rll_collapsed", "total", "product", 70, 35, 13),
    (f"{RLL}, 16384 × 128, faster than eager", "rll_float32", "total", "reference", 6, 12, 25),
    (f"{RLL}, 16384 × 128, faster than torch.compile", "rll_compiled", "total", "compiled", 1.5, 3, 5),
    (f"{RLL}, 16384 × 128, faster than pytorch-metric-learning", "rll_peer", "total", "peer", 8, 16, 25),
    (f"{RLL}, TF32, 16384 × 512, faster than eager", "rll_tf32_512", "total", "reference", 3, 6, 10),
    (f"{RLL}, TF32, 16384 × 512, faster than pytorch-metric-learning", "rll_peer_tf32", "total", "peer", 4, 8, 10),
    ("nearest positive, 16384 × 512, faster than eager", "nearest_positive", "forward", "reference", 50, 100, 200),
    ("nearest positive / `t_gemm`, bf16, one class", "nearest_positive_one_class", "forward", "product", 1.25, 1, 0.65),
    ("pairwise cosine forward / `t_gemm`, bf16", "pairwise", "forward", "product", 1.3, 1.15, 1.05),
    ("pairwise cosine forward + backward / `t_gemm`, bf16", "pairwise", "total", "product", 3.6, 3.3, 3.1),
    (f"{CLASSES}, faster than the public MCR² loop", "class_coding_rate", "total", "mcr2_loop", 500, 1000, 2000),
    (f"{CLASSES}, faster than eager", "class_coding_rate", "total", "reference", 10, 15, 20),
    ("log-determinants of 4096 16 × 16 matrices, faster than eager", "cholesky_16", "total", "reference", 5, 10, 15),
)
