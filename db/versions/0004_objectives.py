"""More objectives: effective tokens per second, and the time and the cost of an epoch.

Revision ID: 0004
Revises: 0003
"""

from alembic import op
from alembic.util import CommandError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OLD = "objective IN ('samples_per_second', 'tokens_per_second')"
_NEW = (
    "objective IN ('samples_per_second', 'tokens_per_second', 'effective_tokens_per_second', 'epoch_seconds', 'cost_per_epoch')"
)


def upgrade() -> None:
    """Makes the table anew, because SQLite cannot change a constraint, and copies its rows (as 0002 does)."""
    connection = op.get_bind()
    stored = "SELECT sql FROM sqlite_master WHERE tbl_name = 'studies' AND sql IS NOT NULL AND type = 'table'"
    table = connection.exec_driver_sql(stored).scalar_one()
    columns = ", ".join(row[1] for row in connection.exec_driver_sql("PRAGMA table_info(studies)"))
    if table.count(_OLD) != 1:
        raise CommandError(f"table studies is not that of revision 0003: {_OLD!r} occurs {table.count(_OLD)} times")
    for statement in (
        "ALTER TABLE studies RENAME TO studies_0003",
        table.replace(_OLD, _NEW),
        f"INSERT INTO studies ({columns}) SELECT {columns} FROM studies_0003",  # noqa: S608 - names from the schema
        "DROP TABLE studies_0003",
    ):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("databases are only upgraded; restore a copy instead")
