#!/usr/bin/env sh
# Export and optimize with the paper's usual shapes; any option of export_and_optimize.py can follow.
set -eu
exec python "$(dirname "$0")/export_and_optimize.py" --batch_size 32 --n_prompt_tokens 50 --cat_or_add add "$@"
