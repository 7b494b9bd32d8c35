"""Benchmarks of operation: resume after kills, overhead of orchestration, labels on several workers."""
