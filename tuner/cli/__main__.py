"""``python -m bbt_fast.tuner.cli``, where the command `bbt-fast` is not on the path."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
