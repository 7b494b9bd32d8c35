"""What README and docs show is true: figures are those of the records, commands and configurations are accepted."""

from __future__ import annotations

import json
import shlex
from itertools import takewhile

import pandas as pd
import pytest
import typer
import yaml

from flows.cli import app
from flows.config import CampaignConfig
from tests.pages import PAGES, PLUGIN, ROOT, blocks, lines

NUMBERS = ("no", "one", "two", "three", "four")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def record(name: str):
    return json.loads((ROOT / "results" / name / "record.json").read_text())


def results(name: str):
    return record(name)["results"]


def quickstart() -> list[str]:
    """What README says of the quickstart, from its record and its ranked list."""
    found = record("2026-11-30-quickstart")
    summary = found["summary"]
    rows = pd.read_csv(ROOT / "results" / "2026-11-30-quickstart" / "ranked.csv")
    best = summary["top"][0]
    plain = rows[(rows["group"] == "find") & rows["decoration"].isna()].sort_values("bulk_modulus", ascending=False)
    return [
        f"{summary['decorations']} of the {summary['stable_new']} finds",
        f"# kept {len(plain)}",
        f"# {', '.join(plain['formula'])}",
        f"# wrote {len(rows)} candidates to finds.csv",
        f"{summary['stable_new']} stable and new in all, best bulk modulus (GPa) {summary['best_objective']:.1f}",
        f"{best['formula']} matches no known crystal and lies {best['e_above_hull']:.3f} eV/atom above",
    ]


def seeds() -> list[str]:
    """What README says of the quickstart's five seeds."""
    found = results("quickstart-seeds")
    engine, shadow = found["engine"], found["shadow"]
    rate = found["finds per label, engine over shadow"]["pooled"]
    more, by_seed = (found["objective of finds, engine minus shadow"][key] for key in ("pooled", "over seeds"))
    return [
        f"{engine['finds']} of the engine's {engine['labels']} picks are finds",
        f"{shadow['finds']} of {shadow['labels']} random picks",
        f"{rate['value']:.1f} times (95 %: {rate['low']:.2f} to {rate['high']:.2f})",
        f"{more['value']:.0f} GPa higher ({more['low']:.0f} to {more['high']:.0f}; "
        f"over seeds {by_seed['value']:.0f}, {by_seed['low']:.0f} to {by_seed['high']:.0f})",
    ]


def others() -> list[str]:
    """What README says of the benchmarks."""
    hull, label = results("references")["relaxed_full_hull"], results("references-sevennet")
    sided = label["verdicts_full_hull"]
    tasks = ("bulk_modulus", "band_gap_max", "formation_energy", "dielectric")
    pool = [row["af"] for row in results("pool") if row["strategy"] in ("ucb", "logei") and row["task"] in tasks]
    simulated = results("dielectric-simulated")["random"]
    closed = simulated["closed"]["above_end"]
    ladder, ternaries = results("ladder"), record("hull-sevennet")["pooled"]["0.1"]
    ahead = sum(task["ours - rank"]["low"] > 0 for task in ladder.values())
    chance, ranking = (ternaries[f"ours_over_{other}"]["pooled"] for other in ("random", "generator_ranking"))
    training = [own["ratio_cpu"] for size in results("training").values() for own in (size["published"], size["own"])]
    relaxation = results("relaxation")["batched against ase-LBFGS"]
    slowest, fastest = relaxation["speedup_cpu_95"]
    killed, scale = results("resume"), results("scale")
    prefect = next(row["overhead"] for row in results("overhead")["rows"] if row["engine"] == "prefect")
    faster = " and ".join(f"{row['speed_up']:.1f}" for row in scale["rows"] if row["workers"] > 1)
    same = "the same list" if scale["identical_lists"] else "other lists"
    rl, held = results("rl-default"), results("rl-default")["tuned"]
    drawn = results("sampling")["published_own_layout"]
    judge, told = results("rl-sevennet"), results("prompts")["all"]
    base, tuned = (100 * judge[arm]["second_msun"]["value"] for arm in ("base", "tuned"))
    relaxed = [judge["tuned"][f"second_{name}_ratio"]["value"] for name in ("msun", "sun")]
    arms = [results("rl-arms")[arm] for arm in ("substitution", "tuned")]
    new, lowest = ([f"{100 * arm[f'second_{name}']['value']:.0f}" for arm in arms] for name in ("msun", "sun"))
    least = min(found["share_ratio"]["value"] for name, found in held["chemistry"].items() if name != "f_block")
    return [
        f"precision {hull['precision']:.2f} and recall {hull['recall']:.2f}; "
        f"mean error {hull['mae_clipped']:.3f} eV/atom",
        f"SevenNet, {sided['rows']}: {sided['precision']:.2f}, {sided['recall']:.2f}; "
        f"{sided['mae_clipped_all']['value']:.3f}.",
        f"{min(pool):.0f} to {max(pool):.0f} times fewer labels",
        f"{closed['value']:.1f} crystals above the 99th percentile after 40 evaluations "
        f"({closed['low']:.1f} to {closed['high']:.1f}); its protocol {simulated['paper']['above_end']['value']:.1f}, "
        f"chance {simulated['random']['above_end']['value']:.1f}",
        f"better than ranking on {NUMBERS[ahead]} tasks of {NUMBERS[len(ladder)]}",
        f"{chance[0]:.0f} times chance, {ranking[0]:.2f} times ranking ({ranking[1]:.2f} to {ranking[2]:.2f})",
        f"sampling {drawn['ratio']:,.0f} times ({drawn['ratio_full']:.0f} where every site is filled)",
        f"M.S.U.N. {100 * rl['base']['msun']['value']:.0f} to {100 * held['msun']['value']:.0f} % "
        f"({held['msun_ratio']['value']:.1f} times), S.U.N. {held['sun_ratio']['value']:.1f} times, each class of "
        f"chemistry at {least:.2f} of its share at least, {100 * held['unique']['value']:.0f} % unique",
        f"by SevenNet: M.S.U.N. {base:.0f} to {tuned:.0f} % ({relaxed[0]:.1f} times), S.U.N. {relaxed[1]:.1f} times",
        f"M.S.U.N. ({' and '.join(new)} %), but half its S.U.N. ({' and '.join(lowest)} %)",
        f"it finds hidden real crystals {results('rediscovery')['all']['ratio']:.1f} times as often",
        f"{told['prompt_over_masks']['found']['ratio']:.1f} times what masks find, "
        f"{told['prompt_over_random']['found']['ratio']:.1f} times chance; of new crystals "
        f"{told['prompt_over_masks']['new']['ratio']:.1f} and {told['prompt_over_random']['new']['ratio']:.1f} times",
        f"({killed['campaigns_with_the_same_list']} of {killed['campaigns']}, [{killed['kills']} kills]",
        f"Prefect adds {100 * prefect:.1f} % to labels of {results('overhead')['seconds_per_label']:.0f} s; "
        f"{scale['labels']:,} labels on 2 and 4 workers: {same}, {faster} times as fast",
        f"training {min(training):.0f} to {max(training):.0f} times as fast",
        f"batched relaxation {relaxation['speedup_cpu']:.0f} times ASE ({slowest:.1f} to {fastest:.1f})",
    ]


@pytest.mark.parametrize("said", [*quickstart(), *seeds(), *others()])
def test_figures_of_the_readme_are_those_of_the_records(said):
    assert said in " ".join(README.split())


def test_the_readme_is_short():
    assert len(README.encode()) <= 10_000


def commands(page: str) -> list[str]:
    """The calls of the command line that a page shows."""
    return [line for block in blocks(page, "sh") for line in lines(block) if line.startswith("discovery-loop ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_shown_has_its_verb_and_options(page):
    """Parsed, also what cannot run here; test_docs, test_docs_guides and test_plugin run the others."""
    for line in commands(page):
        words = list(takewhile(lambda word: word not in ("|", ">", ";", "&&"), shlex.split(line, comments=True)))[1:]
        command = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        command.make_context(line, words)  # refuses options that are not there


@pytest.mark.parametrize("page", [page for page in PAGES if page != PLUGIN])
def test_every_configuration_that_is_shown_is_one(page):
    """But for the page whose package is not installed: test_plugin runs that."""
    for block in blocks(page, "yaml"):
        held = yaml.safe_load(block)
        if "campaign" in held and "goal" in held:  # a whole file, not a part of one
            CampaignConfig.model_validate(held)
