"""What a worker may say of itself."""

import pytest
from pydantic import ValidationError

from autofit.config.result import TrialResult

MEASURED = {"peak_device_bytes": 1, "step_time_seconds": 1.0, "samples_per_second": 1.0, "tokens_per_second": 1.0}


@pytest.mark.parametrize("lacking", sorted(MEASURED))
def test_completed_means_measured(lacking: str) -> None:
    with pytest.raises(ValidationError, match=f"outcome COMPLETED without {lacking}"):
        TrialResult.model_validate({"outcome": "COMPLETED", **MEASURED, lacking: None})


@pytest.mark.parametrize("name", ["peak_device_bytes", "peak_reserved_bytes", "samples_per_second", "requested_bytes"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_measurement_is_none_and_never_0_or_less(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=name):
        TrialResult.model_validate({"outcome": "OOM", name: value})
    assert TrialResult.model_validate({"outcome": "OOM", name: None}).outcome == "OOM"
