"""Plain differentiable PyTorch: the specification of every operation, and the oracle of every test."""
