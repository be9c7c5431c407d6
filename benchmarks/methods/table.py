"""The methods and their settings.

BBT and BBTv2 have the settings of their papers (Sun et al. 2022, 2022b; the task's preset). These papers tune the other
methods for RoBERTa-large. So each of those has a grid of one hyper-parameter here, and the rest is fixed: batches of 16
texts, and early stopping after ``patience`` epochs without a better development score.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final

from bbt_fast.benchmarks.methods import black_box, features, in_context, prompt_tuning, prompting, sentence, weights
from bbt_fast.benchmarks.methods.method import Method, Setting, fitted_by

WHOLE: Final = {"batch_size": 16, "epochs": 40, "patience": 8, "weight_decay": 0.01}
"""For methods that train weights."""
SOFT: Final = {"batch_size": 16, "epochs": 100, "patience": 15, "weight_decay": 0.0}
"""For prompts, which need more steps."""
SMALL: Final = {"batch_size": 16, "epochs": 200, "patience": 40, "weight_decay": 0.01}
"""For classifiers on features, whose epochs are cheap."""


def grid(fixed: Setting, **choices: tuple[Any, ...]) -> tuple[Setting, ...]:
    """Return every combination of the choices, each with the fixed values."""
    return tuple({**fixed, **dict(zip(choices, values, strict=True))} for values in product(*choices.values()))


METHODS: Final[dict[str, Method]] = {
    "manual-prompt": Method(fitted_by(prompting.manual), ({},)),
    "in-context": Method(fitted_by(in_context.fit), ({"demonstrations": 32},)),
    "feature-linear": Method(fitted_by(features.linear), grid({}, C=(0.01, 0.1, 1.0, 10.0))),
    "feature-mlp": Method(fitted_by(features.mlp), grid(SMALL, lr=(3e-4, 1e-3, 3e-3))),
    "feature-bilstm": Method(fitted_by(features.bilstm), grid(SMALL, lr=(3e-4, 1e-3, 3e-3))),
    "prompt-tuning": Method(fitted_by(prompt_tuning.shallow), grid(SOFT, lr=(1e-3, 1e-2, 1e-1))),
    "p-tuning-v2": Method(fitted_by(prompt_tuning.deep), grid(SOFT, lr=(1e-3, 5e-3, 2e-2))),
    "lora": Method(fitted_by(weights.lora), grid(WHOLE, rank=(8,), lr=(3e-4, 1e-3, 3e-3))),
    "bitfit": Method(fitted_by(weights.bitfit), grid(WHOLE, lr=(3e-4, 1e-3, 3e-3))),
    "adapter": Method(fitted_by(weights.adapter), grid(WHOLE, bottleneck=(64,), lr=(3e-4, 1e-3, 3e-3))),
    "model-tuning": Method(fitted_by(weights.model_tuning), grid(WHOLE, lr=(1e-5, 3e-5, 1e-4))),
    "setfit": Method(fitted_by(sentence.setfit), grid({"batch_size": 16, "epochs": 1}, pairs=(20,), lr=(2e-5,))),
    "bbt": Method(black_box.bbt, ({},)),
    "bbtv2": Method(black_box.bbtv2, ({},)),
}
