"""test_logits.safetensors: what the kept prompt answers on the test set, from which several runs' ensemble is made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...export.errors import ArtifactError
from .files import CHECKSUM, digest, write_whole

ANSWERS = "test_logits.safetensors"
METADATA = "bbt_fast"


@dataclass(frozen=True)
class Answers:
    """A prompt's answers on a test set, in the set's order."""

    logits: Tensor
    """Of the label words, [N, C] float32."""
    labels: Tensor
    """The right classes, [N] int64."""
    examples: str
    """A digest of the test set, by which two can be told apart."""

    def write(self, folder: Path) -> None:
        """Write them into a run's folder; equal contents give equal bytes.

        Raises:
            ArtifactError: if the file cannot be written.
        """
        tensors = {"logits": self.logits.contiguous(), "labels": self.labels.contiguous()}
        about = json.dumps({"examples": self.examples, CHECKSUM: self.checksum}, sort_keys=True)
        write_whole(folder / ANSWERS, save(tensors, metadata={METADATA: about}))

    @property
    def checksum(self) -> str:
        """A digest of the contents."""
        tensors = (self.logits, self.labels)
        return digest(self.examples.encode(), *(tensor.contiguous().numpy().tobytes() for tensor in tensors))


def read_answers(folder: Path) -> Answers:
    """Return the answers that a finished run left in its folder.

    Raises:
        ArtifactError: if the file is missing or damaged.
    """
    path = folder / ANSWERS
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
            answers = Answers(file.get_tensor("logits"), file.get_tensor("labels"), about["examples"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}.") from error
    if about.get(CHECKSUM) != answers.checksum:
        raise ArtifactError(f"{path} is damaged: its contents are not those that were written.")
    return answers
