"""Proposes crystals: CrystalFormer in PyTorch, exact likelihood, sampling, pretraining, fine-tuning."""

try:
    from loop.lazy import attach
except ImportError as error:
    import loop

    raise ImportError(
        f"discovery-loop needs its package `loop`, but a file or folder of that name comes first: "
        f"{getattr(loop, '__file__', None) or next(iter(loop.__path__))}. Rename it, or start Python in another folder."
    ) from error

__getattr__, __dir__, __all__ = attach(
    "generator",
    {
        "checkpoint": ["Checkpoint", "load_checkpoint", "save_checkpoint"],
        "constraints.conditions": ["ConditionError", "Sampling"],
        "draw": ["Drawn"],
        "constraints.guard": ["Guard"],
        "likelihood": ["LogProb", "log_prob"],
        "model": ["CrystalFormer", "ModelConfig"],
        "policy": ["CrystalFormerGenerator", "PolicyConfig"],
        "pretrain": ["PretrainConfig"],
        "rl.config": ["FinetuneConfig"],
        "rl.dpo": ["Dpo"],
        "rl.ppo": ["Ppo"],
        "rl.raft": ["Raft"],
        "rl.reinforce": ["Reinforce"],
        "representation.sequence": ["Crystals"],
        "substitution": ["SubstitutionConfig", "SubstitutionGenerator"],
        "representation.tokens": ["CrystalBatch", "detokenize_all", "tokenize"],
    },
)
