"""No progress bars of other libraries in the output of a command."""


def hide_progress_bars() -> None:
    """Hide the progress bar that transformers shows while it loads weights; call this before a model is loaded."""
    # Here, because this import takes seconds, and `--help` must not.
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
