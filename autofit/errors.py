"""The one error family of autofit.

A message says what is wrong, the value that was seen, what is allowed and what to do next; the command line prints it as
one line and exits with `exit_code`.
"""


class AutofitError(Exception):
    """Root of every error that autofit raises on purpose. Exit status 1: the answer is no or the work failed."""

    exit_code = 1


class UsageError(AutofitError):
    """What the user wrote cannot be meant: a file, a flag or a value. Exit status 2."""

    exit_code = 2


class StoreError(AutofitError):
    """The database cannot be read or written as it is."""


class NotFound(StoreError):  # noqa: N818 - says what it is
    """The database has no study or trial of that name."""


class Conflict(AutofitError):  # noqa: N818 - says what it is
    """What is asked cannot be done in the state that a study is in."""


class LaunchError(AutofitError):
    """A trial could not be started, or its device is not free."""


class Interrupted(AutofitError):  # noqa: N818 - not a fault: the user said stop
    """The user stopped the work; what is stored is resumable. Exit status 130."""

    exit_code = 130
