"""What of a round enters the novelty index, and how relaxed crystals are judged."""

from dataclasses import replace

import pytest

from loop.archive import remember
from loop.history import History
from loop.novelty import NoveltyIndex
from loop.settings import CampaignSettings
from loop.stages import Pick, Selected, Step
from loop.store import OracleKey
from loop.values import Candidate, failed
from tests.fakes import FakeOracle, rocksalt


@pytest.mark.parametrize(("status", "verdict"), [("ok", "duplicate"), (failed("not-converged"), "new")])
def test_a_copy_of_what_got_no_usable_label_is_new(status, verdict):
    """Both relax to one crystal; the second is the only usable label of it where the first one's failed."""
    ends = rocksalt("Na", "Cl", 5.6)
    first, second = Candidate(rocksalt("Na", "Cl", 9.0)), Candidate(rocksalt("Na", "Cl", 4.0))
    labels = [replace(label, structure=ends) for label in FakeOracle().evaluate([first, second])]
    labels[0] = replace(labels[0], status=status)
    picked = Step(0, "select", Selected((Pick(first.id, 0, "engine"), Pick(second.id, 0, "engine"))))
    history = History(
        "test", CampaignSettings(), OracleKey("fake@1", "0" * 8), {}, {(0, "select"): picked}, "",
        {first.id: first, second.id: second}, {label.candidate_id: label for label in labels}, 2,
    )  # fmt: skip
    verdicts = remember(NoveltyIndex(), history, 0)
    assert [verdicts[key].kind for key in (first.id, second.id)] == ["new", verdict]
