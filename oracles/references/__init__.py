"""Competing phases: reference crystals, their energies, tables and hulls on demand."""
