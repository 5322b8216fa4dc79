"""Triton kernels, installed as dmlkernels.triton_kernels: one file per operation.

Each file has a table `OPERATORS` of its operators, `<op>_fwd` and `<op>_bwd`, and a launcher with the schema of each.
Nothing here imports Triton until an operator is called.
"""

# Operation -> file.
MODULES = {
    "pairwise": "pairwise",
    "pair_loss": "pair_loss",
    "triplet": "triplet",
    "nearest_positive": "nearest_positive",
    "mine": "nearest_positive",
    "distance_weighted": "distance_weighted",
    "cholesky": "coding_rate",
    "coding_rate": "coding_rate",
    "spherical_expansion": "spherical_expansion",
    "soft_triple": "soft_triple",
}
