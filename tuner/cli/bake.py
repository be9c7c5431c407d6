"""``bbt-fast bake``: a tuned prompt and its model as one ONNX classifier."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import spellings
from .predict import add_run
from .quiet import hide_progress_bars


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the sub-command; the parsed arguments hold the function that answers them as ``text``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bake",
        allow_abbrev=False,
        description="Write model, prompt, template and label words as one ONNX file from token ids to class logits, "
        "with a tokenizer that takes raw texts. It needs onnxruntime and tokenizers to run, and nothing else.",
    )
    parser.set_defaults(text=run)
    add_run(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the files")
    parser.add_argument("--precision", default="fp32", metavar="{fp32,fp16}", help="number format (default: fp32)")
    parser.add_argument("--triton", action="store_true", help="also write a Triton model repository, in DIR/triton")
    parser.add_argument(
        *spellings("model_name"),
        metavar="TEXT",
        help="hub id or folder of the base model, if it has moved since the run",
    )
    return parser


def run(args: argparse.Namespace) -> str:
    """Bake, and say how the file compares.

    Raises:
        BbtFastError: if the prompt cannot be loaded or baked.
    """
    from ..use.bake import bake
    from ..use.classifier import load

    hide_progress_bars()
    classifier = load(args.run, engine="torch", precision="fp32", device="cpu", model_name=args.model_name)
    made = bake(classifier, Path(args.out), precision=args.precision, triton=args.triton)
    lines = [
        f"{made.folder} holds the classifier in {args.precision}; its README.md shows how to run it",
        f"logits differ from PyTorch fp32 by {made.difference:.1e} at most, on {made.texts} texts",
    ]
    if any(made.prefixes):
        wanted = ", ".join(map(repr, made.prefixes))
        lines.append(f"this vocabulary needs these put before the stripped texts: {wanted}")
    return "\n".join(lines)
