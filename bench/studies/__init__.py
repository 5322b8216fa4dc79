"""Trainings on the glyphs, whose results docs/losses.md and docs/methods.md show."""
