"""Density functional theory: GPAW here, inputs for VASP and Quantum ESPRESSO, hand-off to people."""
