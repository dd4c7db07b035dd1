"""DDP's buckets against what a rank of real DistributedDataParallel allocates beside the same model alone."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from autofit.predict.zero import Parameter, ddp_terms
from benchmarks.zero_accuracy import launch


@pytest.mark.train
def test_buckets_are_as_large_as_the_gradients_between_steps_and_at_the_peak(tmp_path):
    pytest.importorskip("torch")
    for rows in launch(["z1-odd-bias", "z2-frozen-blocks"], tmp_path, program=Path(__file__).with_name("ddp_ranks.py")):
        for row in rows:
            trained = [Parameter(row["ddp"]["gradients"] // 2, True)]  # bf16
            buckets = ddp_terms(trained, gradient_bytes=2, ranks=2).buckets
            assert row["ddp"]["resident"] - row["alone"]["resident"] == pytest.approx(buckets, rel=0.005)
            assert row["ddp"]["peak"] - row["alone"]["peak"] == pytest.approx(buckets, rel=0.005)
