"""How a prompt joins the hidden states: ``add`` onto placeholder positions, or ``cat`` before the text.

Each mode stands here twice, as a torch function and as the ONNX prelude that stands before an exported stage; the two
share no branch, so the graph of one mode holds no node of the other. Above the input, a concatenated prompt has
positions of its own, 0 to n-1, onto which the deeper layers' prompts are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn.functional import pad

Mode = Literal["add", "cat"]
MODES: tuple[Mode, ...] = ("add", "cat")


@dataclass(frozen=True)
class Join:
    """One way for prompts [P, n, H] to join hidden states [P', N, S, H]; P' = 1 or P = 1 broadcasts."""

    kind: Mode
    start: int
    """Position of the first prompt token; 0 in cat mode."""
    n_prompt_tokens: int

    def __call__(self, hidden: Tensor, prompt: Tensor) -> Tensor:
        """Return [max(P', P), N, S or n + S, H]."""
        return _JOINS[self.kind](self, hidden, prompt)

    def length(self, text: int) -> int:
        """Return how many positions come out for a text of this many."""
        return text + (self.n_prompt_tokens if self.kind == "cat" else 0)

    def prelude(self, hidden_size: int, dtype: str, opset: int) -> ir.Model:
        """Return the ONNX model ``(hidden, prompt) -> joined``; dtype is an ONNX type name such as "float16"."""
        types = (
            f"{dtype}[hidden_population,examples,{'text' if self.kind == 'cat' else 'sequence'},{hidden_size}] hidden"
        )
        types += f", {dtype}[prompt_population,{self.n_prompt_tokens},{hidden_size}] prompt"
        body = _PRELUDES[self.kind].format(start=self.start, end=self.start + self.n_prompt_tokens)
        return ir.from_onnx_text(
            f'<ir_version: 11, opset_import: ["": {opset}]>\n'
            f"join ({types}) => ({dtype}[population,examples,sequence,{hidden_size}] joined) {{{body}}}"
        )


def _add(join: Join, hidden: Tensor, prompt: Tensor) -> Tensor:
    after = hidden.shape[2] - join.start - join.n_prompt_tokens
    return hidden + pad(prompt, (0, 0, join.start, after))[:, None]


def _cat(join: Join, hidden: Tensor, prompt: Tensor) -> Tensor:
    population = max(hidden.shape[0], prompt.shape[0])
    text = hidden.expand(population, -1, -1, -1)
    return torch.cat([prompt[:, None].expand(population, hidden.shape[1], -1, -1), text], dim=2)


_JOINS = {"add": _add, "cat": _cat}

_PRELUDES: dict[Mode, str] = {
    "add": """
        length = Shape <start = 2, end = 3> (hidden)
        used = Constant <value_ints = [{end}]> ()
        after = Sub (length, used)
        before = Constant <value_ints = [{start}]> ()
        pads = Concat <axis = 0> (before, after)
        axis = Constant <value_ints = [1]> ()
        padded = Pad (prompt, pads, , axis)
        over_examples = Unsqueeze (padded, axis)
        joined = Add (hidden, over_examples)
    """,
    "cat": """
        candidates = Shape <start = 0, end = 1> (prompt)
        axis = Constant <value_ints = [1]> ()
        one = Unsqueeze (prompt, axis)
        examples = Shape <start = 1, end = 2> (hidden)
        rest = Constant <value_ints = [1, 1]> ()
        states = Shape <start = 0, end = 1> (hidden)
        text_shape = Concat <axis = 0> (candidates, axis, rest)
        prompt_shape = Concat <axis = 0> (states, examples, rest)
        over_examples = Expand (one, prompt_shape)
        text = Expand (hidden, text_shape)
        joined = Concat <axis = 2> (over_examples, text)
    """,
}
