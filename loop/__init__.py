"""The idea: values, contracts, campaign, hull, novelty, reward, ranking. No torch, no Prefect."""

from loop.lazy import attach

__getattr__, __dir__, __all__ = attach(
    "loop",
    {
        "campaign": ["Campaign", "Components"],
        "contracts": ["Acquisition", "Generator", "Oracle", "Reward", "Surrogate"],
        "io.crystals": ["CrystalTable", "read_crystals", "write_crystals"],
        "errors": ["CheckpointError", "ConfigError", "DiscoveryLoopError", "InputError", "StoreError"],
        "history": ["History", "Label"],
        "hull": ["Hull", "HullEntry"],
        "novelty": ["NoveltyIndex", "Tolerances"],
        "reward": ["PropertyReward", "RewardConfig", "Term"],
        "settings": ["CampaignSettings"],
        "stages": ["Finetuned", "Labelled", "Pick", "Proposed", "Reported", "Retrained", "Selected", "Step"],
        "store": ["OracleKey", "Store"],
        "validity": ["ValidityRules"],
        "values": ["Candidate", "EnergyType", "Evaluation", "Origin", "Prediction", "Quantity", "RoundReport"],
    },
)
