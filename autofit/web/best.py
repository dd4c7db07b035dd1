"""The best of a study: its winner, and as long as there is none the fastest that fits and trains what was asked for."""

from typing import Any

from autofit.store.reader import Reader

_BEST = """
    SELECT s.name AS study, t.trial_number, t.samples_per_second, t.tokens_per_second, t.step_time_seconds, t.peak_device_bytes,
        t.margin_bytes
    FROM studies s LEFT JOIN best_trials b ON b.study_id = s.id
        JOIN trials t ON t.study_id = s.id AND t.trial_number = coalesce(s.winner_trial_number, b.trial_number)
    WHERE t.samples_per_second IS NOT NULL AND (s.name = ?1 OR ?1 IS NULL)
"""


def best_of(reader: Reader, study: str | None = None) -> dict[str, dict[str, Any]]:
    """The measured figures of the best trial, by study; of one study or of all. One that has none yet is missing."""
    return {row.pop("study"): row for row in reader.ask(_BEST, (study,)).as_dicts()}
