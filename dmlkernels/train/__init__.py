"""The training job of the command line: ``python -m dmlkernels train`` and ``demo``.

It is also the longest worked example of the package: a data set, a class-balanced sampler, a fused loss and the
retrieval metrics put together, with nothing that the public interface does not offer.
"""
