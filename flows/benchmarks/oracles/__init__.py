"""Benchmarks of oracles, references and novelty."""
