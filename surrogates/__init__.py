"""Predicts oracle outcomes with uncertainty: features, Gaussian processes, calibration, acquisition."""
