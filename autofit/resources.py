"""Finds the folders that ship beside the package: `db/` (migrations) and `search_spaces/`.

In a checkout they lie at its top; in a wheel they are copied to `autofit/_resources/`. An editable install is a checkout.
"""

from pathlib import Path

from autofit.errors import AutofitError

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """The folder `name` ("db" or "search_spaces").

    Raises:
        AutofitError: the installation lacks it.
    """
    for folder in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise AutofitError(f"this installation lacks its folder {name}/; install autofit-llm again")


def worker_entry() -> Path:
    """The file that the training environment's interpreter runs. It needs nothing of autofit's own dependencies."""
    return _PACKAGE / "worker" / "__main__.py"
