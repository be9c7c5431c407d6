"""``bbt-fast serve``: a scorer for the engine `remote`, and a classifier, on one port."""

from __future__ import annotations

import argparse
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

from bbt_fast.export.errors import MissingExtraError, UsageError
from bbt_fast.tuner.cli.arguments import add_options, given, spellings
from bbt_fast.tuner.cli.quiet import hide_progress_bars

from .limits import Limits

DESCRIPTION = (
    "Serve a model over the Open Inference Protocol: a scorer for `bbt-fast --engine remote --url ...` (--model_name), "
    "and a classifier for any client (--run). docs/service.md shows how."
)
LOOPBACK, PORT = "127.0.0.1", 8000
OPTIONS = ("model_name", "allow_pickle", "engine", "precision", "device")
MEANINGS = {
    "model_name": "Model of the scorer: a hub id, a folder, or demo.",
    "engine": "Runtime for the model: torch, ort (ONNX Runtime), another one that `bbt-fast doctor` lists, or auto.",
}
LIBRARIES = ("starlette", "uvicorn", "prometheus_client")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "--run", metavar="DIR", help="a run's folder, or the hub id of a shared prompt, to classify with"
    )
    parser.add_argument(
        "--host", default=LOOPBACK, help=f"address to listen on (default: {LOOPBACK}, this machine only)"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on (default: {PORT}; 0 for a free one)")
    parser.add_argument(
        *spellings("api_keys"), metavar="FILE",
        help="one key per line; the server reads changes. Without keys every client has access, on loopback only",
    )  # fmt: skip
    parser.add_argument(*spellings("tls_certificate"), metavar="FILE", help="PEM file of the certificate: serve https")
    parser.add_argument(*spellings("tls_key"), metavar="FILE", help="PEM file of its private key")
    add_options(parser, OPTIONS, MEANINGS)
    group = parser.add_argument_group("limits")
    for field in fields(Limits):
        kind = get_type_hints(Limits)[field.name]
        group.add_argument(
            *spellings(field.name), type=kind, default=field.default, metavar="N" if kind is int else "X",
            help=f"{field.metadata['help']} (default: {field.default})",
        )  # fmt: skip


def run(args: argparse.Namespace) -> str:
    """Serve until a signal ends the server, and return a closing sentence.

    Raises:
        MissingExtraError: if the libraries are not installed.
        UsageError: if the flags contradict each other.
        BbtFastError: if a model cannot be loaded.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"`bbt-fast serve` needs {', '.join(missing)}: `pip install 'bbt-fast[serve]'`.")
    limits = Limits(**{field.name: getattr(args, field.name) for field in fields(Limits)})
    if args.host not in (LOOPBACK, "localhost", "::1") and not args.api_keys:
        raise UsageError(f"--host {args.host} gives other machines access without a key: give --api_keys too.")
    if bool(args.tls_certificate) != bool(args.tls_key):
        raise UsageError("only one of --tls_certificate and --tls_key is given, but https needs both: add the other.")
    # Imported here, so that --help and errors in flags do not wait for PyTorch.
    from .server import Models, build, configure, serve

    hide_progress_bars()
    models = Models(run=args.run, **({"model_name": None} | given(args, OPTIONS)))
    service = build(models, Path(args.api_keys) if args.api_keys else None, limits)
    serve(configure(service, args.host, args.port, args.tls_certificate, args.tls_key))
    return "the server stopped after it finished the running requests."
