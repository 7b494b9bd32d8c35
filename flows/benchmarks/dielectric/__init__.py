"""A wide gap and a high dielectric constant at once: the experiment of CrystalFormer-RL with the loop closed."""
