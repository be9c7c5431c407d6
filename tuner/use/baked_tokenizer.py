"""A tokenizer.json that encodes raw texts like ``TextEncoder``.

Normalizers clean the text, truncation shortens only the text, and a template post-processor adds the task's template,
the mask and the prompt's placeholder tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import tokenizers
from tokenizers import normalizers, processors

from ...export.errors import UsageError
from ..data.columns import Row, cleaned
from ..data.encoding import TextEncoder, pad_id
from ..tasks.template import parts

PROBES: Final = (
    "a gripping film", "It's good!", 'so "fine"?', "3.5", "(no)", "ends with dots ...", "two  spaces", "new\nline",
    "tab\there", "Émile's café", "总之很好。", "日本語のテキスト", "🙂", "#tag @name", "a", "-", "x" * 40,
    "mixed 中文 and English", "{text} {mask}", " spaces at both ends ",
)  # fmt: skip
"""Texts that tokenizers treat differently."""
LONG: Final = "a long text that does not fit, "
MARKS: Final = {"text": "$A", "text_a": "$A", "text_b": "$B"}
"""The names of the texts in a template post-processor."""


@dataclass(frozen=True)
class BakedTokenizer:
    """The contents of a tokenizer.json, and the prefixes that its caller must add."""

    tokenizer: tokenizers.Tokenizer
    prefixes: tuple[str, ...]
    """Per text, the string to put before it after stripping; almost always empty. A vocabulary that spells the start of
    a word with a space, as RoBERTa's, needs it for the second text of a pair."""
    longest: int
    """Tokens of the longest sequence, placeholders included."""
    shortest: int
    """Tokens around the texts."""


def bake_tokenizer(encoder: TextEncoder) -> BakedTokenizer:
    """Return a tokenizer that agrees with an encoder on texts that are likely to show a difference.

    Raises:
        UsageError: if there is none, because tokens span the border of template and text.
    """
    frame = encoder.frame()
    shortest = sum(len(piece) for piece in frame if not isinstance(piece, str))
    longest = encoder.max_text_length + len(encoder.placeholder_ids)
    rows = probe_rows(encoder)
    expected = encoder.token_ids(rows)
    problem = ""
    for inside, prefixes in _spacings(encoder):
        baked = BakedTokenizer(_tokenizer(encoder, frame, inside, longest, prefixes), prefixes, longest, shortest)
        found = [encoding.ids for encoding in encode_rows(baked, rows)]
        different = [row for row, a, b in zip(rows, expected, found, strict=True) if a != b]
        if not different:
            return baked
        problem = problem or repr(different[0].texts)[:80]
    raise UsageError(
        f"the template of task {encoder.task.name!r} cannot be baked into a tokenizer: here a token spans "
        f"template and text, as in {problem}. Put spaces between template and texts and tune again, or use `bbt-fast "
        "predict`."
    )


def encode_rows(baked: BakedTokenizer, rows: Sequence[Row], *, padded: bool = False) -> list[tokenizers.Encoding]:
    """Encode raw rows, padded to the longest or unpadded."""
    texts: list[Any] = [row.texts for row in rows]
    if any(baked.prefixes):
        texts = [tuple(p + t.strip() for p, t in zip(baked.prefixes, pair, strict=True)) for pair in texts]
    if padded:
        return baked.tokenizer.encode_batch([pair if len(pair) > 1 else pair[0] for pair in texts])
    return [baked.tokenizer.encode(*pair) for pair in texts]


def _spacings(encoder: TextEncoder) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield ways to add the white space before texts in the template, the simplest first.

    Each is (the string that the tokenizer puts before every text, the strings that its caller puts before each).
    """
    wanted = []
    for literal, name in parts(encoder.task.template(encoder.kind)):
        if name in encoder.task.texts:
            wanted.append((name, literal[len(literal.rstrip()) :]))
    spaces = tuple(dict(wanted)[name] for name in encoder.task.texts)
    nothing = ("",) * len(spaces)
    yield "", nothing
    for space in dict.fromkeys((*spaces, " ")):  # SentencePiece adds a space itself, unless one was stripped
        if space:
            yield space, nothing
    if len(set(spaces)) > 1:
        yield "", spaces


def _tokenizer(
    encoder: TextEncoder, frame: Sequence[list[int] | str], inside: str, longest: int, prefixes: Sequence[str]
) -> tokenizers.Tokenizer:
    """Build a tokenizer.

    Args:
        encoder: the reference.
        frame: see ``TextEncoder.frame``.
        inside: the string that the tokenizer puts before every text.
        longest: the length limit of truncation.
        prefixes: the strings that the caller puts before each text.
    """
    known = encoder.tokenizer
    content = json.loads(known.backend_tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in encoder.special_tokens]
    content |= {"truncation": None, "padding": None, "post_processor": None}
    baked = tokenizers.Tokenizer.from_str(json.dumps(content))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(old, new) for old, new in encoder.task.replace.items()]
    steps.append(normalizers.Strip(left=not any(prefixes), right=True))
    steps += [normalizers.Replace(token, f"{token[0]} {token[1:]}") for token in encoder.special_tokens]
    if inside:
        steps.append(normalizers.Prepend(inside))
    if baked.normalizer is not None:
        steps.append(baked.normalizer)
    baked.normalizer = normalizers.Sequence(steps)
    baked.post_processor = _post_processor(encoder, frame)
    baked.enable_truncation(longest)
    padding = pad_id(known)
    baked.enable_padding(pad_id=padding, pad_token=known.convert_ids_to_tokens(padding))
    return baked


def _post_processor(encoder: TextEncoder, frame: Sequence[list[int] | str]) -> processors.TemplateProcessing:
    """Return the post-processor that adds the frame to one text, and to two."""
    pieces, special = [], []
    for number, piece in enumerate(frame):
        if isinstance(piece, str):
            pieces.append(MARKS[piece])
        elif piece:
            name = f"template_{number}"
            pieces.append(name)
            special.append({"id": name, "ids": piece, "tokens": encoder.tokenizer.convert_ids_to_tokens(piece)})
    single = [piece for piece in pieces if piece != "$B"]
    pair = pieces if "$B" in pieces else [p for piece in pieces for p in ((piece, "$B") if piece == "$A" else (piece,))]
    return processors.TemplateProcessing(
        single=[f"{piece}:0" for piece in single], pair=[f"{piece}:0" for piece in pair], special_tokens=special
    )


def probe_rows(encoder: TextEncoder) -> list[Row]:
    """Return rows for the comparison, including too long ones and ones that spell special tokens."""
    probes = [text for text in (*PROBES, *encoder.special_tokens) if text.strip()]
    pairs = [*zip(probes, probes, strict=True), *zip(probes, [*probes[1:], probes[0]], strict=True)]
    long = LONG * encoder.max_text_length
    pairs += [(long, long), (long, "short"), ("short", long), (f"{long}?", long)]
    two = len(encoder.task.texts) > 1
    return [cleaned(encoder.task, Row(a, b if two else None, 0)) for a, b in pairs]
