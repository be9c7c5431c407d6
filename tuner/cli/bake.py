"""``bbt-fast bake``: a tuned prompt and its model as one ONNX classifier."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import add_options, checked
from .predict import MEANINGS, add_run
from .quiet import hide_progress_bars

DESCRIPTION = (
    "Write model, prompt, template and label words as one ONNX file from token ids to class logits, "
    "with a tokenizer that takes raw texts. It needs onnxruntime and tokenizers to run, and nothing else."
)
MOVED = ("model_name",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add_run(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the files")
    parser.add_argument("--precision", default="fp32", metavar="{fp32,fp16}", help="number format (default: fp32)")
    parser.add_argument("--triton", action="store_true", help="also write a Triton model repository, in DIR/triton")
    add_options(parser, MOVED, MEANINGS)


def run(args: argparse.Namespace) -> str:
    """Bake, and return how far the file's logits are from PyTorch's."""
    from ..use.bake import bake
    from ..use.classifier import load

    hide_progress_bars()
    classifier = load(args.run, engine="torch", precision="fp32", device="cpu", **checked(args, MOVED))
    baked = bake(classifier, Path(args.out), precision=args.precision, triton=args.triton)
    lines = [
        f"{baked.folder} holds the classifier in {args.precision}; its README.md shows how to run it",
        f"logits differ from PyTorch fp32 by {baked.difference:.1e} at most, on {baked.texts} texts",
    ]
    if any(baked.prefixes):
        wanted = ", ".join(map(repr, baked.prefixes))
        lines.append(f"this vocabulary needs these before the stripped texts: {wanted}")
    return "\n".join(lines)
