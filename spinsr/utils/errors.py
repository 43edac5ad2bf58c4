"""User-facing errors: one line, no traceback."""


class UserError(Exception):
    """Bad input, or a machine that cannot do what was asked; the message is one line."""


class DataError(UserError, ValueError):
    """A sample that cannot be used; the message names its file or key."""

    def __init__(self, message: str) -> None:
        # A worker of torch's loader wraps the message in the traceback of the worker.
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


class TrainingError(UserError, RuntimeError):
    """Training cannot continue."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that is damaged, or cannot be written."""


class OptionError(UserError, ValueError):
    """A mistake in an option file or a flag; the message is one line."""
