"""Interatomic potentials: their contract, the shipped ones, users' own, and those in other environments."""
