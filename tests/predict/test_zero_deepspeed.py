"""The ZeRO terms against real DeepSpeed on two gloo ranks: one configuration a stage (benchmarks/zero_accuracy.py has all)."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.zero_accuracy import FRESH, STORED, launch, worst_of_ranks

RESIDENT, PEAK = 0.005, 0.03


@pytest.mark.train
def test_terms_meet_what_a_rank_really_allocates(tmp_path):
    pytest.importorskip("deepspeed")
    by_rank = launch(["z1-overlap-accumulated", "z2-frozen-blocks", "z3-odd-bias"], tmp_path)
    for pair in zip(*by_rank, strict=True):
        row = worst_of_ranks(pair)
        assert abs(row["error"]["resident"]) <= RESIDENT, row
        assert max(abs(row["error"][phase]) for phase in ("forward", "backward", "step", "peak")) <= PEAK, row


def test_the_stored_table_covers_every_fresh_case_within_bounds():
    stored = json.loads(STORED.read_text())
    assert [row["case"]["name"] for row in stored["rows"]] == [case.name for case in FRESH]
    assert len(FRESH) >= 12
    assert {case.stage for case in FRESH} == {1, 2, 3}
    for row in stored["rows"]:
        assert abs(row["predicted"]["resident_bytes"] / row["measured"]["resident_bytes"] - 1) <= RESIDENT, row["case"]["name"]
        assert abs(row["predicted"]["peak_bytes"] / row["measured"]["peak_bytes"] - 1) <= PEAK, row["case"]["name"]
