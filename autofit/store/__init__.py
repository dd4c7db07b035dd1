"""The database of studies and trials: the only room that imports SQLAlchemy and Alembic.

`Store` (store.py) writes and reads records; `Reader` (reader.py) answers questions about them with the standard library alone,
so that a command that only asks starts fast. Both are imported on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autofit.store.store import Store

__all__ = ["Store"]


def __getattr__(name: str) -> object:
    if name == "Store":
        from autofit.store.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
