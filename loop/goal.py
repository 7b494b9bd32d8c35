"""What a campaign looks for, said once: to maximise or minimise a property, or to bring it to a target or a window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loop.errors import ConfigError
from loop.properties import heading, spec_of

GoalKind = Literal["maximise", "minimise", "target", "maximize", "minimize"]
BRITISH: dict[str, GoalKind] = {"maximize": "maximise", "minimize": "minimise"}


@dataclass(frozen=True)
class Goal:
    """A property and what is wanted of it.

    Raises:
        ConfigError: a target without the goal ``target``, or the reverse; a window that is none.
    """

    name: str
    """Property, such as bulk_modulus or dft_band_gap."""
    kind: GoalKind = "maximise"
    """maximise, minimise or target."""
    target: float | None = None
    """Target value, in the property's unit."""
    window: tuple[float, float] | None = None
    """Lower and upper bound, in the property's unit; what lies inside is ranked first."""

    def __post_init__(self) -> None:
        """Check, and read American spellings."""
        if self.window is not None:  # a list where it comes from JSON
            object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "kind", BRITISH.get(self.kind, self.kind))
        if self.kind not in ("maximise", "minimise", "target"):
            raise ConfigError(f"expected the goal maximise, minimise or target, got {self.kind!r}.")
        if self.kind == "target" and self.target is None and self.window is None:
            raise ConfigError(f"the goal 'target' of {self.name!r} needs a target or a window in the property's unit.")
        if self.kind != "target" and (self.target is not None or self.window is not None):
            raise ConfigError(
                f"a target or window of {self.name!r} belongs to the goal 'target', not to {self.kind!r}."
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ConfigError(f"the window of {self.name!r} must be two rising numbers, got {list(self.window)}.")
        if self.target is not None and self.window is not None and not self.window[0] <= self.target <= self.window[1]:
            raise ConfigError(
                f"the target {self.target:g} of {self.name!r} lies outside its window {list(self.window)}."
            )

        if self.kind == "target" and not self._possible():
            raise ConfigError(f"no crystal has this {self.text()}; {self.name} is {spec_of(self.name).bounds}.")

    def _possible(self) -> bool:
        """Whether a crystal can reach the target, or the window where there is no target."""
        spec = spec_of(self.name)
        low, high = (self.target, self.target) if self.target is not None else self.window or (math.nan, math.nan)
        return low <= spec.high and (high > spec.low or (high == spec.low and not spec.above))

    def badness(self, value: float) -> tuple[float, float]:
        """Lower is better: distance outside the window, then from the target, or the value itself by its direction.

        A value that is not known (NaN) is worse than all others.
        """
        if math.isnan(value):
            return math.inf, math.inf
        if self.kind != "target":
            return 0.0, -value if self.kind == "maximise" else value
        low, high = self.window or (-math.inf, math.inf)
        return max(low - value, value - high, 0.0), 0.0 if self.target is None else abs(value - self.target)

    def score(self, value: float) -> float:
        """One number of which more is better, for comparing several goals; -inf for a value that is not known."""
        outside, distance = self.badness(value)
        return -distance if self.kind != "target" or self.target is not None else -outside

    @property
    def centre(self) -> float:
        """The target, or the middle of the window, in the property's unit; NaN where there is neither."""
        if self.target is not None:
            return self.target
        return math.nan if self.window is None else sum(self.window) / 2

    def text(self, unit: str = "") -> str:
        """For people, as ``maximise bulk modulus (GPa)`` or ``band gap (eV): target 1.34, window 1.1 to 1.6``."""
        name = heading(self.name, unit)
        if self.kind != "target":
            return f"{self.kind} {name}"
        parts = [f"target {self.target:g}"] if self.target is not None else []
        parts += [f"window {self.window[0]:g} to {self.window[1]:g}"] if self.window is not None else []
        return f"{name}: {', '.join(parts)}"

    @property
    def unit(self) -> str:
        """Unit of the property, where it is known without a label."""
        return spec_of(self.name).unit
