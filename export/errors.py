"""The errors of bbt-fast. Each message says what is wrong, what was expected, and what to do."""


class BbtFastError(Exception):
    """An error that the user can fix; the command line prints only its message and exits with status 2."""


class UsageError(BbtFastError, ValueError):
    """An option has an unknown name or an invalid value."""


class DataError(BbtFastError, ValueError):
    """A user's file is missing, empty or malformed."""


class ShapeError(BbtFastError, ValueError):
    """A tensor does not fit the graph."""


class MissingExtraError(BbtFastError, ImportError):
    """An optional dependency is not installed."""


class DeviceError(BbtFastError, RuntimeError):
    """The device, or a library that it needs, cannot be used or has failed."""


class ParityError(BbtFastError, RuntimeError):
    """An artifact does not reproduce the PyTorch fp32 reference."""


class ArtifactError(BbtFastError, RuntimeError):
    """A file of bbt-fast is damaged, foreign or in use."""


class NumericsError(BbtFastError, RuntimeError):
    """An engine returned NaN or infinite logits."""


class PartlyFailedError(BbtFastError):
    """Part of the work failed; the command line prints the results of the rest and exits with status 1."""

    def __init__(self, message: str, done: str) -> None:
        """Take the error message and the text of the results."""
        super().__init__(message)
        self.done = done


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop, or the error's type."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
