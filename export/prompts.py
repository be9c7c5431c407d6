"""How a prompt joins the hidden states: ``add`` to placeholder positions, or ``cat`` before the text.

Each join is implemented twice: as a torch function, and as an ONNX prelude of the exported stage. They share no code,
so the graph of one mode has no node of another. Above the input, a concatenated prompt occupies positions 0 to n-1, and
the prompts of deeper layers are added there. ``follow`` serves texts with a shared prefix (``prefix.py``) and only
broadcasts over the population. ``add_row`` and ``cat_row`` serve packed texts (``packing.py``): an index tensor maps
tokens to prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn.functional import pad

from .texts import CAT_INDEX, PROMPT_INDEX

Mode = Literal["add", "cat"]
Way = Literal["add", "cat", "follow", "add_row", "cat_row"]
MODES: tuple[Mode, ...] = ("add", "cat")


@dataclass(frozen=True)
class Join:
    """A join of prompts [P, n, W] with hidden states [P', N, S, H]; P' = 1 or P = 1 broadcasts.

    W is H for "add" and "cat"; for "follow" it is the width of a prefix's state.
    """

    kind: Way
    start: int
    """Position of the first prompt token in each text; 0 except for "add" and "add_row"."""
    n_prompt_tokens: int

    def __call__(self, hidden: Tensor, prompt: Tensor, *index: Tensor) -> tuple[Tensor, ...]:
        """Return hidden states [max(P', P), N, S or n + S, H], for "follow" also the prompts [max(P', P), n, W].

        For packed texts they are [max(P', P), 1, T, H], and ``index`` is the tensor of ``names``.
        """
        return _JOINS[self.kind](self, hidden, prompt, *index)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that the join takes after the prompts."""
        return _INDEX.get(self.kind, ())

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return ("joined", "prefix") if self.kind == "follow" else ("joined",)

    def length(self, text: int) -> int:
        """Return the number of output positions for a text of this length."""
        return text + (self.n_prompt_tokens if self.kind == "cat" else 0)

    def prelude(self, hidden_size: int, prompt_size: int, dtype: str, opset: int) -> ir.Model:
        """Return the ONNX model ``(hidden, prompt) -> outputs``.

        Args:
            hidden_size: H.
            prompt_size: W.
            dtype: an ONNX type name such as "float16".
            opset: the version of the operators.
        """
        n, row = self.n_prompt_tokens, self.kind in _INDEX
        texts, joined = ("1", "tokens") if row else ("examples", "sequence")
        text = "text" if self.kind in ("cat", "cat_row") else joined
        inputs = f"{dtype}[hidden_population,{texts},{text},{hidden_size}] hidden"
        inputs += f", {dtype}[prompt_population,{n},{prompt_size}] prompt"
        inputs += "".join(f", int64[tokens] {name}" for name in self.names)
        outputs = [f"{dtype}[population,{texts},{joined},{hidden_size}] joined"]
        outputs += [f"{dtype}[population,{n},{prompt_size}] prefix"] * (self.kind == "follow")
        body = _PRELUDES[self.kind].format(start=self.start, end=self.start + n)
        return ir.from_onnx_text(
            f'<ir_version: 11, opset_import: ["": {opset}]>\njoin ({inputs}) => ({", ".join(outputs)}) {{{body}}}'
        )


def in_row(join: Join) -> Join:
    """Return the join for packed texts that corresponds to one for padded texts."""
    return replace(join, kind=_IN_ROW[join.kind])


def _add(join: Join, hidden: Tensor, prompt: Tensor) -> tuple[Tensor, ...]:
    after = hidden.shape[2] - join.start - join.n_prompt_tokens
    return (hidden + pad(prompt, (0, 0, join.start, after))[:, None],)


def _cat(join: Join, hidden: Tensor, prompt: Tensor) -> tuple[Tensor, ...]:
    population = max(hidden.shape[0], prompt.shape[0])
    text = hidden.expand(population, -1, -1, -1)
    return (torch.cat([prompt[:, None].expand(population, hidden.shape[1], -1, -1), text], dim=2),)


def _follow(join: Join, hidden: Tensor, prompt: Tensor) -> tuple[Tensor, ...]:
    population = max(hidden.shape[0], prompt.shape[0])
    return hidden.expand(population, -1, -1, -1), prompt.expand(population, -1, -1)


def _add_row(join: Join, hidden: Tensor, prompt: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    del join
    return (hidden + pad(prompt, (0, 0, 0, 1)).index_select(1, index)[:, None],)


def _cat_row(join: Join, hidden: Tensor, prompt: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    return (_cat(join, hidden, prompt)[0].index_select(2, index),)


_JOINS: dict[Way, Callable[..., tuple[Tensor, ...]]] = {
    "add": _add,
    "cat": _cat,
    "follow": _follow,
    "add_row": _add_row,
    "cat_row": _cat_row,
}
_IN_ROW: dict[Way, Way] = {"add": "add_row", "cat": "cat_row"}
_INDEX: dict[Way, tuple[str, ...]] = {"add_row": (PROMPT_INDEX,), "cat_row": (CAT_INDEX,)}

_PRELUDES: dict[Way, str] = {
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
    "follow": """
        candidates = Shape <start = 0, end = 1> (prompt)
        states = Shape <start = 0, end = 1> (hidden)
        hidden_rest = Constant <value_ints = [1, 1, 1]> ()
        prompt_rest = Constant <value_ints = [1, 1]> ()
        hidden_shape = Concat <axis = 0> (candidates, hidden_rest)
        prompt_shape = Concat <axis = 0> (states, prompt_rest)
        joined = Expand (hidden, hidden_shape)
        prefix = Expand (prompt, prompt_shape)
    """,
    "add_row": f"""
        axis = Constant <value_ints = [1]> ()
        pads = Constant <value_ints = [0, 1]> ()
        padded = Pad (prompt, pads, , axis)
        placed = Gather <axis = 1> (padded, {PROMPT_INDEX})
        over_row = Unsqueeze (placed, axis)
        joined = Add (hidden, over_row)
    """,
    "cat_row": f"""
        candidates = Shape <start = 0, end = 1> (prompt)
        states = Shape <start = 0, end = 1> (hidden)
        axis = Constant <value_ints = [1]> ()
        rest = Constant <value_ints = [1, 1, 1]> ()
        one = Unsqueeze (prompt, axis)
        text_shape = Concat <axis = 0> (candidates, rest)
        prompt_shape = Concat <axis = 0> (states, rest)
        over_states = Expand (one, prompt_shape)
        text = Expand (hidden, text_shape)
        both = Concat <axis = 2> (over_states, text)
        joined = Gather <axis = 2> (both, {CAT_INDEX})
    """,
}
