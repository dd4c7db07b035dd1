"""A file's lines are changed apart, and nothing else is."""

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autofit.config.launcher_yaml import REMOVED, edited, launcher_values
from autofit.errors import AutofitError, UsageError

FILE = """\
# my run
model_name_or_path:   models/tiny   # do not touch

bf16: yes
'per_device_train_batch_size': 1
gradient_accumulation_steps: 8  # 8 samples
deepspeed:
  # ours
  zero_optimization: {stage: 2}

  bf16: {enabled: auto}

# the end of it
unknown_key: [1,   2]
empty:
"""


def changed_lines(after: str) -> list[str]:
    lines = difflib.unified_diff(FILE.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in {"+++", "---"}]


def test_nothing_asked_changes_nothing() -> None:
    assert edited(FILE, {}, "f") == FILE
    assert edited(FILE, {"bf16": True, "gradient_accumulation_steps": 8, "absent": REMOVED}, "f") == FILE


def test_a_value_is_replaced_where_it_stands() -> None:
    after = edited(FILE, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, "f")
    assert changed_lines(after) == [
        "-'per_device_train_batch_size': 1",
        "-gradient_accumulation_steps: 8  # 8 samples",
        "+'per_device_train_batch_size': 4  # autofit: was 1",
        "+gradient_accumulation_steps: 2  # 8 samples",
    ]


def test_a_nested_value_goes_with_its_lines_and_comes_as_a_block() -> None:
    gone = edited(FILE, {"deepspeed": REMOVED}, "f")
    assert "# autofit: taken out\n# deepspeed:\n#   # ours\n#   zero_optimization: {stage: 2}\n" in gone
    assert "#   bf16: {enabled: auto}\n\n# the end of it\nunknown_key: [1,   2]\n" in gone
    put = edited(FILE, {"deepspeed": {"zero_optimization": {"stage": 3, "sub_group_size": 10**9}}}, "f")
    assert "deepspeed:\n  zero_optimization:\n    stage: 3\n    sub_group_size: 1000000000\n\n# the end of it\n" in put
    line = edited("deepspeed: ds/z3.json  # mine\nbf16: true", {"deepspeed": {"a": 1}}, "f")
    assert line == "deepspeed:  # mine\n  a: 1\nbf16: true"


def test_a_new_key_comes_at_the_end() -> None:
    after = edited(FILE, {"optim": "adafactor", "resume_from_checkpoint": "saves/a b", "empty": 3}, "f")
    assert after == FILE.replace("empty:", "empty: 3") + (
        '\n# autofit: added\noptim: adafactor\nresume_from_checkpoint: "saves/a b"\n'
    )


def test_line_ends_of_another_system_stay() -> None:
    dos = FILE.replace("\n", "\r\n")
    after = edited(dos, {"gradient_accumulation_steps": 4}, "f")
    assert after == dos.replace("steps: 8 ", "steps: 4 ")
    added = edited(dos, {"deepspeed": {"a": {"b": 1}}, "optim": "sgd"}, "f")
    assert added.count("\n") == added.count("\r\n") > dos.count("\r\n") - 4


def test_what_cannot_be_changed_apart_is_refused() -> None:
    with pytest.raises(AutofitError, match="one flow mapping"):
        edited("{bf16: true, cutoff_len: 3}", {"cutoff_len": 4}, "f")
    with pytest.raises(AutofitError, match="cannot be changed in place"):
        edited("a: &x 1\nb: *x\n", {"a": 2}, "f")
    for text, words in (("- 1\n", "must hold a mapping"), ("a: [", "is not YAML"), ("", "must hold a mapping")):
        with pytest.raises(UsageError, match=words):
            launcher_values(text, "f")


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "d"]), st.one_of(st.integers(), st.booleans(), st.text("xy:# '\"~é0", max_size=8))
    ),
    st.dictionaries(st.sampled_from(["b", "c", "e"]), st.one_of(st.none(), st.integers(), st.text("no#: -y", max_size=6))),
)
def test_what_was_written_is_what_is_read(before: dict[str, object], changes: dict[str, object]) -> None:
    import json

    text = "# head\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in before.items()) + "z: 1\n"
    after = edited(text, changes, "f")
    assert launcher_values(after, "f") == {**before, "z": 1, **changes}
