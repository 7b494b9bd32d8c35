"""Properties from a potential: bulk modulus, elastic tensor, phonons."""
