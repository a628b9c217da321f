"""Every error that rtr-ray raises on purpose.

    RtrError
    ├── ConfigError         (ValueError)    what a person typed: pool.yaml, job.yaml, a flag
    ├── DataError           (ValueError)    what a file holds: a corpus, outcomes, a run folder
    │   └── MissingError                    what somebody named is not there, or is not theirs
    ├── RouterError         (ValueError)    a router folder that does not fit its encoder or pool
    ├── BudgetError         (RuntimeError)  the money does not suffice
    ├── LedgerError         (RuntimeError)  the books would not add up; always a bug or a broken file
    ├── StorageError        (OSError)       a folder or bucket that cannot be read or written
    ├── PlacementError      (RuntimeError)  the cluster has no room for what was asked
    ├── ExecutionError      (RuntimeError)  a request could not be answered
    │   └── TransientError                  the same request may well be answered if it is sent again
    ├── SandboxError        (RuntimeError)  this machine cannot isolate a program as configured
    └── RequestError        (in online.problems) a request that gets no answer, and its HTTP status

Each takes one message: what was asked, what was found, what to do. A message never
holds a prompt, an answer or a key, so that it may be logged and cross processes.
"""


class RtrError(Exception):
    """The base of all of them: `except RtrError` catches what rtr-ray raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(RtrError, ValueError):
    """What a person typed cannot be used."""


class DataError(RtrError, ValueError):
    """What a file holds cannot be used."""


class MissingError(DataError):
    """What somebody named is not there, or belongs to somebody else."""


class RouterError(RtrError, ValueError):
    """A router folder does not fit its encoder or its pool."""


class BudgetError(RtrError, RuntimeError):
    """The money does not suffice."""


class LedgerError(RtrError, RuntimeError):
    """The books would not add up."""


class StorageError(RtrError, OSError):
    """A folder or bucket cannot be read or written."""


class PlacementError(RtrError, RuntimeError):
    """The cluster has no room for what was asked."""


class ExecutionError(RtrError, RuntimeError):
    """A request could not be answered."""


class TransientError(ExecutionError):
    """A request was not answered, but the same request may well be answered if it is sent again."""


class SandboxError(RtrError, RuntimeError):
    """This machine cannot isolate a program as configured."""
