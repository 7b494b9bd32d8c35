"""The goal of a run as Prefect's form asks for it: fields that a person can fill in, in place of nested settings."""

from typing import Annotated, Any, Literal, Self, get_args

from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from loop.errors import ConfigError
from loop.goal import Goal
from loop.properties import spec_of
from loop.stability import IMPLAUSIBLE

Symbol = Annotated[str, Field(json_schema_extra={"enum": chemical_symbols[1:]})]  # chosen from a list in the form
# what the shipped oracles measure and a surrogate knows the usual range of; others are named in a configuration
Measured = Literal[
    "bulk_modulus",
    "shear_modulus",
    "youngs_modulus",
    "poisson_ratio",
    "volume",
    "lowest_frequency",
    "dft_band_gap",
    "dft_band_gap_direct",
    "dft_dielectric_electronic",
    "dft_dielectric_total",
]
NEEDS: dict[str, list[str]] = {"value": ["target"], "lower": ["target", "upper"], "upper": ["target", "lower"]}
TOGETHER: JsonDict = {"dependentRequired": {name: [*others] for name, others in NEEDS.items()}}
# the form shows what the server says of the schema: a key that is missing is named in a sentence, a choice is not
MISSING = "value (or lower and upper) of the target"
TOGETHER |= {
    "if": {"required": ["target"], "not": {"anyOf": [{"required": ["value"]}, {"required": ["lower"]}]}},
    "then": {"required": [MISSING]},
}


def units() -> str:
    """Units of the properties that the form offers, and what has none."""
    found: dict[str, list[str]] = {}
    for name in get_args(Measured):
        found.setdefault(spec_of(name).unit, []).append(name)
    return "; ".join(f"{'no unit' if unit == '1' else unit}: {', '.join(names)}" for unit, names in found.items())


class RunGoal(BaseModel):
    """What is looked for, in place of what the configuration says; what is left empty stays as configured."""

    # Prefect's server checks the schema before it makes a run, so what belongs together stands in it, too
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False,
        json_schema_extra=TOGETHER,
    )  # fmt: skip

    stable: float | None = Field(
        None, title="Stable up to", ge=IMPLAUSIBLE, le=2.0,
        description="Energy above the hull, in eV/atom, up to which a crystal counts as stable; for example 0.05.",
    )  # fmt: skip
    maximise: Measured | None = Field(None, description="Property that is to be high.")
    minimise: Measured | None = Field(
        None, description="Property that is to be low; together with maximise: a Pareto front of both."
    )
    target: Measured | None = Field(
        None, description="Property that is to have a value, or to lie in a window: give these, too."
    )
    value: float | None = Field(None, title="Value of the target", description=f"In the property's unit. {units()}.")
    lower: float | None = Field(
        None, title="Lower end of the target's window", description="In the property's unit; needs upper."
    )
    upper: float | None = Field(
        None, title="Upper end of the target's window", description="In the property's unit; needs lower."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        for name, others in NEEDS.items():
            if missing := [other for other in others if name in given and other not in given]:
                raise ValueError(f"{name} is of no use without {' and '.join(missing)}")
        if "target" in given and not given & {"value", "lower"}:
            raise ValueError("target needs a value, or lower and upper")
        names = [self.maximise, self.minimise, self.target]
        if twice := {name for name in names if name is not None and names.count(name) > 1}:
            raise ValueError(f"each property once, got {' and '.join(sorted(twice))} twice")
        try:
            for item in ("maximise", "minimise", "target"):
                if (name := getattr(self, item)) is not None:
                    Goal(name, item, *(self._aim if item == "target" else ()))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def _aim(self) -> tuple[float | None, tuple[float, float] | None]:
        """Value and window of the target."""
        return self.value, None if self.lower is None or self.upper is None else (self.lower, self.upper)

    def settings(self) -> dict[str, Any]:
        """Dotted keys of a configuration and their values."""
        found: dict[str, Any] = {} if self.stable is None else {"goal.stable": {"e_above_hull": self.stable}}
        found |= {f"goal.{kind}": name for kind in ("maximise", "minimise") if (name := getattr(self, kind))}
        if self.target is not None:
            value, within = self._aim
            found["goal.target"] = {"name": self.target, "value": value, "within": within}
        return found
