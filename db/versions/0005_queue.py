"""Searches that wait: the table `queue`, which whoever submits and the supervisor write.

Revision ID: 0005
Revises: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TABLE = """
CREATE TABLE queue (
	id INTEGER NOT NULL, 
	study TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	submitted_by TEXT NOT NULL, 
	request TEXT NOT NULL, 
	wish TEXT NOT NULL, 
	state TEXT NOT NULL, 
	device_set TEXT, 
	attempt INTEGER NOT NULL, 
	started_at TEXT, 
	finished_at TEXT, 
	message TEXT, 
	PRIMARY KEY (id), 
	CONSTRAINT uq_queue_study UNIQUE (study), 
	CONSTRAINT ck_queue_wish CHECK (wish IN ('RUN', 'PAUSE', 'CANCEL')), 
	CONSTRAINT ck_queue_state CHECK (state IN ('QUEUED', 'RUNNING', 'PAUSED', 'CANCELLED', 'DONE', 'FAILED')), 
	CONSTRAINT ck_queue_started CHECK (attempt >= 0 AND (attempt = 0) = (started_at IS NULL) AND (attempt = 0) = (device_set IS NULL)), 
	CONSTRAINT ck_queue_finished CHECK ((state IN ('CANCELLED', 'DONE', 'FAILED')) = (finished_at IS NOT NULL))
)
"""  # noqa: W291, E501 - the text that SQLAlchemy writes for `tables.queue`, to the letter


def upgrade() -> None:
    """Adds the table and the index that the supervisor asks by."""
    op.execute(_TABLE)
    op.execute("CREATE INDEX ix_queue_state ON queue (state, id)")


def downgrade() -> None:
    raise NotImplementedError("databases are only upgraded; restore a copy instead")
