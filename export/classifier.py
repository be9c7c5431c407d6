"""A model with tuned prompts as one graph: ``input_ids, attention_mask -> logits`` over the classes.

The graph contains the stages of a search (``stages.py``), with the prompts as constants. A search records masks and
embedded texts once per data set. Here the stock model computes them inside the graph from the graph's inputs, so the
graph accepts any batch size and length.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from .ensemble import pooled
from .errors import UsageError
from .graphs import OPSET, save_graph, tidy
from .model import StagedModel
from .parity import probe_examples
from .words import LabelWords, class_logits

INPUTS = ("input_ids", "attention_mask")
"""The graph's inputs, each [batch, sequence] int64."""
OUTPUT = "logits"
"""The graph's output, [batch, C] float32."""
AXES = ("batch", "sequence")
MOST = 1 << 20
"""The upper limit for rows and tokens; PyTorch's exporter requires one."""
ROTATIONS = "position_embeddings"
"""The name of rotary tables, [1, S, D], among the inputs of layers."""


class Classifier(nn.Module):
    """A frozen model with its prompts, label words and answer position folded in.

    Args:
        staged: the model, cut where the prompts enter.
        prompts: [K, 1 or L, n, H], one for each stage; the answers of K prompt sets are averaged (``ensemble.py``).
        label_words: the label words of each prompt set, [K], or one entry for all sets.
        mask_id: the mask token, where the answer is read; None for the last real token.
        dtype: the compute dtype; the label words' logits stay in float32.

    Raises:
        UsageError: if the model is an encoder-decoder model such as BART or T5.
    """

    def __init__(
        self, staged: StagedModel, prompts: Tensor, label_words: Sequence[LabelWords], mask_id: int | None,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        if staged.family.kind == "seq2seq":
            raise UsageError(
                f"{staged.family.name} cannot be baked: one graph from token ids to class logits needs an encoder "
                "(RoBERTa, BERT, ...) or a decoder-only model, and this is an encoder-decoder model. Use `bbt-fast "
                "predict`."
            )
        rows, bias = staged.parts.label_rows(torch.tensor([row for words in label_words for row in words.rows]))
        if dtype is not torch.float32:
            model: Any = copy.deepcopy(staged.model)
            model = model.to(dtype)
            staged = StagedModel(model, staged.mode, staged.n_prompt_tokens, staged.cuts)
        self.mask_id, self._parts, self._before = mask_id, staged.parts, staged.before
        self._words = label_words
        self.model = staged.model
        self.stages = nn.ModuleList(staged.encode(probe_examples(staged)).stages)
        self.label_rows, self.label_bias = nn.Buffer(rows.float().clone()), nn.Buffer(bias.float().clone())
        self.prompts = nn.Buffer(prompts.to(dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class logits [N, C] for right-padded texts [N, S]."""
        if self.mask_id is None:
            position = attention_mask.sum(dim=1) - 1
        else:
            position = (input_ids == self.mask_id).long().argmax(dim=1)
        recorded = self._parts.record(input_ids, attention_mask, self._before)
        rotations = {
            name: table.expand(input_ids.shape[0], -1, -1)  # the exporter's operator needs a table for each text
            for name, table in recorded.tensors.items()
            if name.startswith(ROTATIONS)
        }
        tensors = recorded.tensors | rotations
        tensors |= {
            "answer_position": position + self._before,
            "label_rows": self.label_rows,
            "label_bias": self.label_bias,
        }
        hidden = recorded.embedded[None]
        for stage, prompts in zip(self.stages, self.prompts.unbind(dim=1), strict=True):
            hidden = stage(*stage.join(hidden, prompts), *(tensors[name] for name in stage.names))  # type: ignore[operator, union-attr]
        answers = torch.split(hidden, [len(words.rows) for words in self._words], dim=-1)
        if len(self._words) == 1:
            return pooled(self._classes(answers[0], self._words[0]))
        own = zip(answers, self._words, strict=True)
        return pooled(torch.stack([self._classes(logits[k], words) for k, (logits, words) in enumerate(own)]))

    @staticmethod
    def _classes(logits: Tensor, words: LabelWords) -> Tensor:
        return class_logits(logits, words.places, torch.tensor(words.bias) if words.bias else None)


def onnx_from_classifier(classifier: Classifier, shortest: int, longest: int) -> ir.Model:
    """Return the graph of a classifier, for any batch size and texts of ``shortest`` to ``longest`` tokens.

    Raises:
        UsageError: if the model's attention sees only a part of such texts.
    """
    window = getattr(classifier.model.config, "sliding_window", None)
    if classifier.mask_id is None and window is not None and window < longest:  # encoders always record their masks
        raise UsageError(
            f"this model cannot be baked: its attention has a window of {window} tokens, and the file would "
            f"ignore it in texts of up to {longest}. Use `bbt-fast predict`."
        )
    ids = torch.ones(2, max(shortest + 2, 4), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    batch, sequence = (
        torch.export.Dim(name, min=low, max=high)
        for name, low, high in zip(AXES, (1, shortest), (MOST, longest), strict=True)
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            classifier,
            (ids, mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes={name: {0: batch, 1: sequence} for name in INPUTS},
            verbose=False,
        )
    assert program is not None
    tidy(program.model)
    return program.model


def write_classifier(classifier: Classifier, path: Path, shortest: int, longest: int) -> None:
    """Write the graph of a classifier; large weights go to ``<name>.data`` beside it."""
    save_graph(onnx_from_classifier(classifier, shortest, longest), path)
