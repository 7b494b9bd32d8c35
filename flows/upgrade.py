"""Settings as earlier versions wrote them, brought to today's form; each change is said once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from generator.rl.config import ALGORITHMS, BEFORE

MOVED = {  # of `generator.finetune`, up to version 0.1, to an option of the algorithm
    "clip": "clip",
    "ratio": "ratio",
    "kl_stop": "target_kl",
    "baseline": "baseline",
    "baseline_decay": "baseline_decay",
    "standardise": "normalize_advantage",
    "dpo_beta": "beta",
    "replay": "replay",
    "replay_weight": "self_imitation",
}
RENAMED = {"imitation": "raft"}


def upgraded(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A campaign's settings in today's form, and a line of advice for each thing that was said in an older one."""
    generator = data.get("generator")
    if not isinstance(generator, Mapping):
        return dict(data), []
    section, advice = _substitution(generator)
    if isinstance(section.get("finetune"), Mapping):
        section["finetune"], more = _finetune(section["finetune"])
        advice += more
    return {**data, "generator": section}, advice


def begun_before(data: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys that a results folder's settings lack, and what the campaign does in their place.

    Such a file holds every key that there was when the campaign began, so it goes on without what is newer.
    """
    generator = data.get("generator")
    section = generator.get("finetune") if isinstance(generator, Mapping) else None
    if not isinstance(section, Mapping):
        return {}
    return {f"generator.finetune.{key}": value for key, value in BEFORE.items() if key not in section}


def _substitution(old: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options of ion substitution, which other generators never read, stand where those of any generator do."""
    kept = {key: value for key, value in old.items() if key != "substitution"}
    if "substitution" not in old or old.get("kind") != "substitution":
        return kept, []
    moved = "generator.substitution is read as generator.options; write it so"
    return {**kept, "options": {**(old["substitution"] or {}), **(old.get("options") or {})}}, [moved]


def _finetune(old: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options of the algorithm move below it; those that it never read are left out."""
    name = old.get("algorithm", "raft")
    moved = [key for key in MOVED if key in old]
    if old.get("replay") == 0:  # with an empty buffer nothing was imitated
        old = {key: value for key, value in old.items() if key not in ("replay", "replay_weight")}
    if not isinstance(name, str) or (not moved and name not in RENAMED):
        return dict(old), []
    kind = RENAMED.get(name, name)
    known = {item.name for item in fields(ALGORITHMS[kind])} if kind in ALGORITHMS else set()
    options = {MOVED[key]: old[key] for key in moved if key in old and MOVED[key] in known}
    kept = {key: value for key, value in old.items() if key not in moved}
    said = f"algorithm: {name}" + "".join(f", {key}" for key in moved)
    shown = ", ".join(["kind: " + kind, *(f"{key}: {value}" for key, value in options.items())])
    advice = f"generator.finetune: {said} is read as algorithm: {{{shown}}}; write it so"
    return {**kept, "algorithm": {"kind": kind, **options}}, [advice]
