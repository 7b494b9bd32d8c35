"""Proposes crystals: CrystalFormer in PyTorch, exact likelihood, sampling, pretraining, fine-tuning."""
