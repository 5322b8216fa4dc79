"""One file per operation: its public functions, over the operators of `_contract`."""
