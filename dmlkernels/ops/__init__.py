"""One file per operation: its fake, its autograd and its public functions."""
