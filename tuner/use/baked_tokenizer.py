"""A tokenizer that writes raw texts as a tuned classifier reads them, in one tokenizer.json.

Its pieces do what ``TextEncoder`` does: normalizers clean the text, truncation cuts the text alone, and a template
post-processor puts the task's template, the mask and the prompt's placeholder tokens around it.
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
"""Texts whose ends and insides a tokenizer may treat in ways of its own."""
LONG: Final = "a long text that does not fit, "
MARKS: Final = {"text": "$A", "text_a": "$A", "text_b": "$B"}
"""What a template post-processor calls the texts."""


@dataclass(frozen=True)
class BakedTokenizer:
    """A tokenizer.json's contents, and what a caller must still do."""

    tokenizer: tokenizers.Tokenizer
    prefixes: tuple[str, ...]
    """Per text, what to put before it once it is stripped; almost always nothing. A vocabulary that spells the start
    of a word with a space, as RoBERTa's, cannot know that the second text of a pair follows one."""
    longest: int
    """Tokens of the longest sequence it makes, placeholders included."""
    shortest: int
    """Tokens around the texts."""


def bake_tokenizer(encoder: TextEncoder) -> BakedTokenizer:
    """Make the tokenizer that writes texts as an encoder does.

    It is compared with the encoder on texts that are likely to show a difference.

    Raises:
        UsageError: if there is none, because the template runs into its texts.
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
        f"the template of task {encoder.task.name!r} cannot be put into a tokenizer: with this vocabulary it joins the "
        f"text beside it into one token, as in {problem}. Put spaces between template and texts and tune again, or use "
        "`bbt-fast predict`."
    )


def encode_rows(baked: BakedTokenizer, rows: Sequence[Row], *, padded: bool = False) -> list[tokenizers.Encoding]:
    """Encode raw rows, padded to the longest or each by itself."""
    texts: list[Any] = [row.texts for row in rows]
    if any(baked.prefixes):
        texts = [tuple(p + t.strip() for p, t in zip(baked.prefixes, pair, strict=True)) for pair in texts]
    if padded:
        return baked.tokenizer.encode_batch([pair if len(pair) > 1 else pair[0] for pair in texts])
    return [baked.tokenizer.encode(*pair) for pair in texts]


def _spacings(encoder: TextEncoder) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield ways to give texts the white space that stands before them in the template, the simplest first.

    Each is what the tokenizer puts before every text, and what its caller puts before each.
    """
    wanted = []
    for literal, name in parts(encoder.task.template(encoder.kind)):
        if name in encoder.task.texts:
            wanted.append((name, literal[len(literal.rstrip()) :]))
    spaces = tuple(dict(wanted)[name] for name in encoder.task.texts)
    nothing = ("",) * len(spaces)
    yield "", nothing
    for space in dict.fromkeys((*spaces, " ")):  # SentencePiece brings a space of its own, unless one was stripped
        if space:
            yield space, nothing
    if len(set(spaces)) > 1:
        yield "", spaces


def _tokenizer(
    encoder: TextEncoder, frame: Sequence[list[int] | str], inside: str, longest: int, prefixes: Sequence[str]
) -> tokenizers.Tokenizer:
    """Put the pieces together.

    Args:
        encoder: the model.
        frame: what stands around the texts.
        inside: what the tokenizer puts before every text.
        longest: where texts are cut.
        prefixes: what the caller puts before each text.
    """
    known = encoder.tokenizer
    content = json.loads(known.backend_tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in encoder.special_tokens]
    content |= {"truncation": None, "padding": None, "post_processor": None}
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(old, new) for old, new in encoder.task.replace.items()]
    steps.append(normalizers.Strip(left=not any(prefixes), right=True))
    steps += [normalizers.Replace(token, f"{token[0]} {token[1:]}") for token in encoder.special_tokens]
    if inside:
        steps.append(normalizers.Prepend(inside))
    if made.normalizer is not None:
        steps.append(made.normalizer)
    made.normalizer = normalizers.Sequence(steps)
    made.post_processor = _post_processor(encoder, frame)
    made.enable_truncation(longest)
    padding = pad_id(known)
    made.enable_padding(pad_id=padding, pad_token=known.convert_ids_to_tokens(padding))
    return made


def _post_processor(encoder: TextEncoder, frame: Sequence[list[int] | str]) -> processors.TemplateProcessing:
    """Return what puts the frame around one text, and around two."""
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
    """Return rows to compare with, too long ones and such as spell special tokens among them."""
    probes = [text for text in (*PROBES, *encoder.special_tokens) if text.strip()]
    pairs = [*zip(probes, probes, strict=True), *zip(probes, [*probes[1:], probes[0]], strict=True)]
    long = LONG * encoder.max_text_length
    pairs += [(long, long), (long, "short"), ("short", long), (f"{long}?", long)]
    two = len(encoder.task.texts) > 1
    return [cleaned(encoder.task, Row(a, b if two else None, 0)) for a, b in pairs]
