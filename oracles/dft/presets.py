"""Numerical settings of the DFT oracle: three presets, from a check that it runs to numbers for a paper.

How far each is from published PBE values is measured by ``discovery-loop benchmark dft`` (results/dft, docs/dft.md).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from loop.errors import ConfigError

if TYPE_CHECKING:
    from pymatgen.core import Structure

# Ferromagnetic start, Bohr magnetons per atom: free ions' spins, rounded; the density finds its own value from there.
MOMENTS = {"V": 3.0, "Cr": 4.0, "Mn": 5.0, "Fe": 4.0, "Co": 3.0, "Ni": 2.0, "Ce": 1.0, "Pr": 2.0, "Nd": 3.0, "Pm": 4.0}
MOMENTS |= {"Sm": 5.0, "Eu": 7.0, "Gd": 7.0, "Tb": 6.0, "Dy": 5.0, "Ho": 4.0, "Er": 3.0, "Tm": 2.0}


# O2 is a triplet, a superoxide a doublet: both have bonds of at most 1.35 A; a peroxide, without a moment, of 1.45 A or
# more (Huber and Herzberg, Constants of Diatomic Molecules, 1979; Abrahams and Kalnajs, Acta Cryst. 8, 503 (1955)).
# Without spin O2 lies 0.5 eV/atom too high, and every oxide too deep.
OXYGEN_MOMENT, OXYGEN_BOND = 1.0, 1.40  # Bohr magnetons per atom, A


def starting_moments(structure: Structure) -> list[float]:
    """Moments (Bohr magnetons) of a ferromagnetic start, one per site, in the structure's order; zeros: no magnet."""
    moments = [MOMENTS.get(site.specie.symbol, 0.0) for site in structure]
    if "O" in structure.symbol_set:
        one, other, *_ = structure.get_neighbor_list(OXYGEN_BOND)
        for pair in zip(one.tolist(), other.tolist(), strict=True):
            if {structure[index].specie.symbol for index in pair} == {"O"}:
                moments[pair[0]] = OXYGEN_MOMENT
    return moments


@dataclass(frozen=True)
class DftSettings:
    """What decides the numbers. Defaults are those of the preset `fast`.

    Sources: plane-wave cutoffs and meshes were measured with GPAW on Si, MgO and GaAs (docs/dft.md). The cutoff of a
    cell relaxation is higher than that of a single point, for the stress lacks the plane waves that a strained cell
    would add (Pulay stress; Francis and Payne, J. Phys.: Condens. Matter 2, 4395 (1990)): for MgO, 500 eV give a
    lattice parameter of 4.10 A, 700 eV the right 4.245 A. Response: bands and cutoff as in GPAW's documentation of the
    dielectric function; ALDA adds the exchange-correlation part of the local fields, as the density-functional
    perturbation theory behind published tables does (Gajdos et al., Phys. Rev. B 73, 045112 (2006)).

    Raises:
        ConfigError: a value is out of its range.
    """

    functional: str = "PBE"  # Perdew, Burke, Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996)
    ecut: float = 500.0  # eV, plane waves of energy and gap; at 300 eV the gap of MgO is 1.5 eV too small
    relax_ecut: float = 700.0  # eV, of a relaxation
    k_spacing: float = 0.25  # 1/A (2 pi included), largest distance of points of the Gamma-centred mesh
    path_spacing: float | None = 0.15  # 1/A between points of lines along which the gap is sought too; None: no lines
    width: float = 0.01  # eV, Fermi-Dirac; small, for insulators' gaps must not be smeared away
    scf_energy: float = 5e-4  # eV/electron, GPAW's default
    scf_density: float = 1e-4  # electrons/electron, GPAW's default
    scf_eigenstates: float = 4e-8  # eV^2/electron, GPAW's default; 1e-6 takes a third less time
    max_scf: int = 150  # iterations of one attempt
    response_k_spacing: float = 0.25  # 1/A; of an even mesh that avoids Gamma, which converges far faster
    response_ecut: float = 50.0  # eV, local fields
    response_bands: float = 6.0  # bands over occupied bands
    response_xc: Literal["ALDA", "RPA"] = "ALDA"  # RPA is about 5 % lower
    fmax: float = 0.03  # eV/A, relaxed
    smax: float = 0.3  # GPa, relaxed
    max_steps: int = 40  # of a relaxation

    def __post_init__(self) -> None:
        """Check ranges."""
        positive = ("ecut", "relax_ecut", "k_spacing", "width", "response_k_spacing", "response_ecut", "fmax", "smax")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"DFT settings: {name} must be positive, got {getattr(self, name)}.")
        if self.response_bands < 2 or self.max_scf < 1 or self.max_steps < 0:
            raise ConfigError(
                "DFT settings: expected response_bands >= 2, max_scf >= 1 and max_steps >= 0, got "
                f"{self.response_bands}, {self.max_scf} and {self.max_steps}."
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DftSettings:
        """A preset, with changes.

        Raises:
            ConfigError: no such preset, or no such setting.
        """
        if name not in PRESETS:
            raise ConfigError(f"There is no DFT preset {name!r}; choose from {', '.join(PRESETS)}.")
        unknown = set(changes) - {item.name for item in fields(cls)}
        if unknown:
            known = ", ".join(item.name for item in fields(cls))
            raise ConfigError(f"DFT settings: unknown {', '.join(sorted(unknown))}; there are {known}.")
        return replace(PRESETS[name], **changes)


PRESETS = {
    # seconds for two atoms: the chain works, numbers within some 10 %
    "test": DftSettings(
        ecut=400.0, k_spacing=0.35, path_spacing=None, response_k_spacing=0.45, response_ecut=40.0,
        max_steps=15, fmax=0.05, smax=1.0,
    ),
    # tens of seconds for two atoms: screening
    "fast": DftSettings(),
    # minutes to hours: what a table in a paper may quote
    "converged": DftSettings(
        ecut=700.0, relax_ecut=800.0, k_spacing=0.20, path_spacing=0.05, scf_energy=1e-5, scf_density=1e-5,
        response_k_spacing=0.17, response_ecut=60.0, response_bands=8.0, fmax=0.01, smax=0.1, max_steps=80,
    ),
}  # fmt: skip
