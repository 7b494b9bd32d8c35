"""A crystal as Wyckoff positions, tokens and sequences, and back."""
