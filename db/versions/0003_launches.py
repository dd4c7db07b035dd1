"""Real runs that `autofit launch` started and that ran out of memory are trials too: purpose `launch`.

One configuration may be launched many times, so that the rule "none is tried twice for one purpose" leaves launches out.

Revision ID: 0003
Revises: 0002
"""

from alembic import op
from alembic.util import CommandError

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# What changes in the text of `CREATE TABLE trials`; each left side occurs in it once.
_CHANGES = (
    ("purpose IN ('search', 'confirm')", "purpose IN ('search', 'confirm', 'launch')"),
    ("CONSTRAINT uq_trials_configuration UNIQUE (study_id, config_key, purpose), \n\t", ""),
)


def upgrade() -> None:
    """Makes the table anew, because SQLite cannot change a constraint, and copies its rows (as 0002 does)."""
    connection = op.get_bind()
    stored = "SELECT sql FROM sqlite_master WHERE tbl_name = 'trials' AND sql IS NOT NULL AND type = "
    table = connection.exec_driver_sql(stored + "'table'").scalar_one()
    indexes = list(connection.exec_driver_sql(stored + "'index'").scalars())
    columns = ", ".join(row[1] for row in connection.exec_driver_sql("PRAGMA table_info(trials)"))
    for old, new in _CHANGES:
        if table.count(old) != 1:
            raise CommandError(f"table trials is not that of revision 0002: {old!r} occurs {table.count(old)} times")
        table = table.replace(old, new)
    for statement in (
        "ALTER TABLE trials RENAME TO trials_0002",
        table,
        f"INSERT INTO trials ({columns}) SELECT {columns} FROM trials_0002",  # noqa: S608 - names from the schema
        "DROP TABLE trials_0002",
        *indexes,
        "CREATE UNIQUE INDEX uq_trials_configuration ON trials (study_id, config_key, purpose) WHERE purpose != 'launch'",
    ):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("databases are only upgraded; restore a copy instead")
