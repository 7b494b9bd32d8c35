"""Benchmark of hull exploration."""
