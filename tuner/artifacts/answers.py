"""test_logits.safetensors: the kept prompt's answers on the test set, the input of an ensemble of several runs."""

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
    """Logits of the label words, [N, C] float32."""
    labels: Tensor
    """The true classes, [N] int64."""
    examples: str
    """A digest of the test set."""

    def write(self, folder: Path) -> None:
        """Write the answers into a run's folder; equal contents give equal bytes.

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
    """Return the answers in a finished run's folder.

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
        raise ArtifactError(f"{path} is damaged: its checksum does not match its contents.")
    return answers
