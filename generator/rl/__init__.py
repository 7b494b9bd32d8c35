"""Reinforcement fine-tuning: one algorithm per file, in the field's names."""
