"""Measures crystals: potentials, relaxation, elastic properties, reference phases."""
