"""What the benchmark of fine-tuning compares: recipe, published algorithm, ablations, and equal-cost baselines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from generator.rl.config import FinetuneConfig
from generator.rl.dpo import Dpo
from generator.rl.drift import UNLIMITED
from generator.rl.ppo import Ppo
from generator.rl.reinforce import Reinforce
from loop.errors import ConfigError
from loop.reward import STABILITY, RewardConfig, Term
from loop.validity import ValidityRules

BASE, TUNED, PPO, PAPER, BEST_OF_N, SUPERVISED = "base", "tuned", "ppo", "paper", "best-of-n", "supervised"
SUBSTITUTION = "substitution"  # other ions on known crystals: what needs no network at all
# as published: linear in the distance; 1 is 3 eV/atom here, which the KL weight of the paper's variant takes along
LINEAR = Term("e_above_hull", "minimise", low=-1.0, high=2.0, shape=1.0, source="hull")
LEARNED = replace(STABILITY, source="surrogate")  # the relaxed distance, as a surrogate predicts
REWARD = RewardConfig(terms=(STABILITY,), duplicate_factor=0.0)
RECIPE = FinetuneConfig(iterations=192)
ANCHORED: dict[str, Any] = {"space_group_anchor": 0.3}
UNGUARDED: dict[str, Any] = {
    "floor": None,
    "abstain_on_sparse_hulls": False,
    "single_elements": True,
    "max_repeats": None,
}
NO_RULES = ValidityRules(
    max_atoms=None, max_elements=None, radioactive=True, noble_gases=True, radius_fraction=None, charge_balance=False
)


@dataclass(frozen=True)
class Variant:
    """How one arm differs from the recipe."""

    about: str
    finetune: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    validity: ValidityRules | None = None  # rules whose breach costs the reward; none: the default ones

    def settings(self, recipe: FinetuneConfig) -> tuple[FinetuneConfig, RewardConfig]:
        """Settings of this arm."""
        return replace(recipe, **self.finetune), replace(REWARD, **self.reward)

    @property
    def asks_surrogate(self) -> bool:
        """Whether its reward is what a surrogate predicts."""
        return any(term.source == "surrogate" for term in self.settings(RECIPE)[1].terms)


VARIANTS = {
    TUNED: Variant("the recipe"),
    PAPER: Variant(
        "CrystalFormer-RL as published: E_hull reward, whole-batch PPO with the crystal's ratio clipped, moving "
        "average, p(g) fixed, no novelty, no guards",
        {
            "algorithm": Ppo(ratio="crystal", baseline="moving-average", normalize_advantage=False, target_kl=1e9),
            "batch_size": 100,
            "minibatch_size": 100,
            "epochs": 5,
            "learn_space_groups": False,
            "tilt_learning_rate": 0.0,
            "learning_rate": 1e-4,
            "kl_weight": 0.1 / (LINEAR.high - LINEAR.low),
            "space_group_anchor": 0.0,
            "repeat_discount": 1.0,
            "element_limit": None,
            "average_last": 0.0,
            "limits": UNLIMITED,
        },
        {"terms": (LINEAR,), "known_factor": 1.0, "duplicate_factor": 1.0, **UNGUARDED},
        NO_RULES,
    ),
    PPO: Variant("PPO, ratios clipped by parts, baseline leave-one-out", ANCHORED | {"algorithm": Ppo()}),
    "group-baseline": Variant(
        "the same, baseline by space group", ANCHORED | {"algorithm": Ppo(baseline="space-group")}
    ),
    "crystal-ratio": Variant(
        "the same as ppo, the crystal's ratio clipped", ANCHORED | {"algorithm": Ppo(ratio="crystal")}
    ),
    "reinforce": Variant("REINFORCE, one pass", ANCHORED | {"algorithm": Reinforce(), "epochs": 1}),
    "dpo": Variant("DPO on pairs ranked by reward", ANCHORED | {"algorithm": Dpo()}),
    "replay": Variant("ppo with self-imitation beside it", ANCHORED | {"algorithm": Ppo(self_imitation=1.0)}),
    "new-only": Variant("known crystals earn nothing", reward={"known_factor": 0.0}),
    "no-novelty": Variant(
        "known crystals and repeats earn as new ones do",
        {"repeat_discount": 1.0},
        {"known_factor": 1.0, "duplicate_factor": 1.0, "max_repeats": None},
    ),
    "some-classes": Variant("a part is learned from whatever pays best", {"keep_classes": 0.85}),
    "no-classes": Variant(
        "learned from whatever pays best, of any class and prototype", {"keep_classes": 0.0, "prototype_limit": 1.0}
    ),
    "no-direct": Variant("no rate of its own for element and letter biases", {"tilt_learning_rate": 0.0}),
    "no-groups": Variant("p(g) fixed", {"learn_space_groups": False}),
    "surrogate": Variant(
        "reward: the mean of a surrogate of the relaxed distance, learned from relaxed samples of the base",
        reward={"terms": (LEARNED,), "kappa": 0.0},
    ),
    "surrogate-penalty": Variant("the same less one standard deviation", reward={"terms": (LEARNED,), "kappa": 1.0}),
    "no-guards": Variant(
        "all guards off: any composition and energy earns, elements and repeats without limit",
        {"element_limit": None, "repeat_discount": 1.0, "space_group_anchor": 0.0, "limits": UNLIMITED},
        UNGUARDED,
        NO_RULES,
    ),
}
SAMPLED = (BASE, BEST_OF_N, SUPERVISED, SUBSTITUTION)  # arms without reinforcement


def check_names(names: tuple[str, ...]) -> None:
    """Refuse unknown arms.

    Raises:
        ConfigError: names them.
    """
    unknown = [name for name in names if name not in (*VARIANTS, *SAMPLED)]
    if unknown:
        raise ConfigError(f"no such variant: {', '.join(unknown)}; there are {', '.join((*SAMPLED, *VARIANTS))}")
