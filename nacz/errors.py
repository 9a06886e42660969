"""Every error that nacz raises on purpose, and the exit code each one becomes.

    NaczError                       1  base class; never raised itself
    ├── UsageError                  1  wrong arguments, or an input, output or environment that cannot be used
    │   ├── OutputExistsError       1  the output is there already and may not be overwritten
    │   ├── LimitError              1  the archive needs more than the caller allows (memory, output size)
    │   └── WorkerError             1  workers cannot be reached, were lost for good, or are not fit for the work
    ├── CorruptDataError            2  the archive is damaged, truncated, or not an archive
    │   └── UnsupportedVersionError 2  an archive of a format that this release does not know
    ├── InternalError               3  a broken promise inside nacz: please report it
    └── ModelError                  4  the data is fine, the weights are not
        ├── ModelMissingError       4  weights are not on this machine and could not be fetched
        └── ModelMismatchError      4  weights are here, but not the ones the archive was written with, or who runs them
                                       is another

Knows exit codes because the two maps must not drift apart; knows nothing of terminals.
"""

from __future__ import annotations


class NaczError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(NaczError):
    """Arguments, files or environment cannot be used as asked."""


class OutputExistsError(UsageError):
    """The output exists and overwriting was not allowed."""


class LimitError(UsageError):
    """Decoding would exceed a limit that the caller set."""


class WorkerError(UsageError):
    """Workers cannot be reached, were lost for good, or are not fit for the work."""


class CorruptDataError(NaczError):
    """The data is not an intact archive."""

    exit_code = 2


class UnsupportedVersionError(CorruptDataError):
    """The archive has a format version, or uses a feature, that this release does not know."""


class InternalError(NaczError):
    """An invariant of nacz itself failed."""

    exit_code = 3


class ModelError(NaczError):
    """The weights that are needed cannot be used."""

    exit_code = 4


class ModelMissingError(ModelError):
    """The weights are not on this machine and were not fetched."""


class ModelMismatchError(ModelError):
    """The weights on this machine, or the program that runs them, are not those that the archive names."""
