"""Methods that train weights: all of them, the biases, LoRA, adapters.

- Model Tuning: every weight.
- BitFit (Ben Zaken et al. 2022): the biases.
- LoRA (Hu et al. 2022): low-rank updates of the weights that `peft` selects for the architecture.
- Adapter: a bottleneck with a norm after each layer, as in Bapna & Firat (2019), that starts near the identity, as in
  Houlsby et al. (2019).
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bbt_fast.benchmarks.methods.method import Case, Fitted
from bbt_fast.benchmarks.methods.prompting import answer_of, label_logits
from bbt_fast.benchmarks.methods.training import train
from bbt_fast.export.anatomy import Anatomy
from bbt_fast.export.errors import MissingExtraError


def model_tuning(case: Case) -> Fitted:
    """Train every weight."""
    case.model.requires_grad_(True)
    return _fit(case, case.model)


def bitfit(case: Case) -> Fitted:
    """Train the biases of the layers and of the head."""
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_(name.split(".")[-1] == "bias")
    return _fit(case, case.model)


def lora(case: Case) -> Fitted:
    """Train low-rank updates of the weights that `peft` selects for the architecture.

    Raises:
        MissingExtraError: without `peft`.
    """
    try:
        from peft import LoraConfig, get_peft_model
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError as error:
        raise MissingExtraError("LoRA needs peft: `pip install 'bbt-fast[compare]'`.") from error
    rank = case.setting["rank"]
    known = case.model.config.model_type in KNOWN
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.1, target_modules=None if known else "all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses names that transformers has renamed
        model = get_peft_model(case.model, config)
    return _fit(case, model)


def adapter(case: Case) -> Fitted:
    """Train a bottleneck after each layer; of an encoder-decoder model, also after the decoder's layers."""
    parts = Anatomy(case.model, at_tokens=False)
    layers = list(dict.fromkeys([*parts.layers, *parts.decoder_layers]))
    case.model.set_attn_implementation("sdpa")  # the stages' attention has no gradients
    hidden, width = int(case.model.config.hidden_size), case.setting["bottleneck"]
    adapters = nn.ModuleList(Bottleneck(hidden, width) for _ in layers).to(case.device)
    for layer, bottleneck in zip(layers, adapters, strict=True):
        layer.register_forward_hook(lambda _, __, output, own=bottleneck: _after(own, output))
    return _fit(case, nn.ModuleDict({"adapters": adapters, "model": case.model}))


class Bottleneck(nn.Module):
    """[..., H] -> [..., H]: adds a change that passes through ``width`` values and starts near zero."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.norm, self.down, self.up = nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.Linear(width, hidden)
        nn.init.normal_(self.up.weight, std=1e-3)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Add the change."""
        change: Tensor = self.up(torch.relu(self.down(self.norm(hidden))))
        return hidden + change


def _after(bottleneck: Bottleneck, output: Any) -> Any:
    """Apply a bottleneck to a layer's output: hidden states, or a tuple that begins with them."""
    return bottleneck(output) if isinstance(output, Tensor) else (bottleneck(output[0]), *output[1:])


def _fit(case: Case, learner: nn.Module) -> Fitted:
    """Train the parameters that require gradients; the model in the learner answers."""
    model: Any = learner["model"] if isinstance(learner, nn.ModuleDict) else learner
    examples = case.parts.train.examples.to(case.device)

    answer = partial(answer_of, case, model=model)
    notes = train(case, learner, lambda rows: label_logits(model, examples.select(rows)), answer)
    return Fitted(answer, "user", notes=notes)
