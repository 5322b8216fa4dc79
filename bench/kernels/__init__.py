"""Time and memory of every operation beside its rivals, which have to agree before a clock runs."""
