"""Benchmarks of selection, on pools of crystals with known properties."""
