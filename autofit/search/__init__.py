"""Which configuration to try next: the only room that imports Optuna."""
