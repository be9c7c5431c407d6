"""The errors bbt-fast raises: each message says what was wrong, against what, and what to do."""


class BbtFastError(Exception):
    """Anything the user can mend; the command line prints its message alone and exits with status 2."""


class UsageError(BbtFastError, ValueError):
    """An unknown name, or a value outside what an option takes."""


class DataError(BbtFastError, ValueError):
    """A user's file is missing, empty or malformed."""


class ShapeError(BbtFastError, ValueError):
    """A tensor does not fit the graph it was given to."""


class MissingExtraError(BbtFastError, ImportError):
    """An optional dependency is not installed."""


class DeviceError(BbtFastError, RuntimeError):
    """The device, or a library it needs, cannot do what was asked."""


class ParityError(BbtFastError, RuntimeError):
    """A built artifact does not reproduce the PyTorch fp32 reference."""


class ArtifactError(BbtFastError, RuntimeError):
    """A file that bbt-fast wrote is damaged, foreign or in use."""


class NumericsError(BbtFastError, RuntimeError):
    """An engine returned NaN or infinite logits."""


class PartlyFailedError(BbtFastError):
    """Some of what was asked for failed and the rest is done; the command line prints that and exits with status 1."""

    def __init__(self, message: str, done: str) -> None:
        """Say what failed, and keep the text of what is done."""
        super().__init__(message)
        self.done = done
