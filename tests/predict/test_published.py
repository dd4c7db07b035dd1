"""The table of published measurements: readable, attributed, and honest about what it cannot express."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.published import Row, load, models
from benchmarks.published_steps import ANCHORS, anchor_of

ROWS = load()


def test_there_are_rows_of_every_kind():
    assert len(ROWS) >= 40
    assert len({row.id for row in ROWS}) == len(ROWS)
    assert {row.modality for row in ROWS} == {"text", "vision-language"}
    assert len({row.source.repository for row in ROWS}) >= 5
    assert all(len(row.source.commit) == 40 for row in ROWS)


def test_every_row_has_a_spec_or_a_reason():
    expressible = [row for row in ROWS if row.not_expressible is None]
    assert len(expressible) == 84
    for row in expressible:
        trial = row.trial()
        assert trial is not None
        assert row.versions["transformers"]
        assert row.versions["torch"]
        assert row.measured.allocated_bytes or row.measured.reserved_mean_bytes
    assert all(row.trial() is None for row in ROWS if row.not_expressible)
    assert Counter((row.trial().method, row.trial().gradient_checkpointing) for row in expressible) == {
        ("full", True): 34,
        ("lora", True): 31,
        ("full", False): 3,
        ("lora", False): 16,
    }


def test_the_readme_counts_what_the_file_holds():
    text = (Path(__file__).parents[2] / "benchmarks" / "published" / "README.md").read_text()
    counted = Counter(row.source.repository for row in ROWS)
    for name, rows in counted.items():
        line = next(line for line in text.splitlines() if line.startswith("|") and name in line)
        together = sum(counted[n] for n in counted if n in line.split("|")[1].split(", ") or n in line.split("|")[1])
        assert int(line.split("|")[2]) == together, (name, rows)


def test_measured_memory_covers_the_weights_of_the_model():
    """bf16 cannot peak below 2 bytes a parameter; full fine-tuning with AdamW not below 8 (weights, gradients, moments)."""
    parameters = {
        "mistral-7b-v0.1": 7_241_732_096,
        "santacoder": 1_124_886_528,
        "powerlm-3b": 3_512_017_152,
        "llama-3-8b": 8_030_261_248,
        "llama-3.2-3b": 3_212_749_824,
    }
    for row in ROWS:
        if row.config:
            least = 8 if row.trial().method == "full" else 2
            held = row.measured.allocated_bytes or row.measured.end_allocated_mean_bytes
            assert held > least * parameters[row.config], row.id
    assert set(parameters) == set(models())


def test_a_row_needs_exactly_one_of_spec_and_reason():
    good = next(row for row in ROWS if row.spec).model_dump()
    with pytest.raises(ValueError, match="either a spec or a reason"):
        Row.model_validate({**good, "not_expressible": "because"})
    with pytest.raises(ValueError, match="without a measurement"):
        Row.model_validate({**good, "measured": {}})


def test_lengths_come_from_rows_of_the_table_that_have_the_figure():
    rows = {row.id: row for row in ROWS}
    for (quantity, every), name in ANCHORS.items():
        assert rows[name].loop["empty_cache_every_steps"] == every
        assert getattr(rows[name].measured, f"{quantity}_bytes")
    assert anchor_of("reserved_mean", 1) == anchor_of("end_allocated_mean", 10) == ("end_allocated_mean", 1)
    assert anchor_of("reserved_99th", 10) in ANCHORS
