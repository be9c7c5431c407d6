"""What a command prints is its own: no other library's progress bars among it."""


def hide_progress_bars() -> None:
    """Keep transformers from drawing a bar while it loads weights; a command calls this before it loads a model."""
    # Takes seconds to import, and `--help` shall not.
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
