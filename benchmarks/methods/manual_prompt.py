"""Manual prompt: the template and label words alone; nothing is trained."""

from __future__ import annotations

from torch import Tensor

from bbt_fast.benchmarks.methods.method import Case, Fitted, encoded_part
from bbt_fast.benchmarks.methods.prompting import in_batches, label_logits


def fit(case: Case) -> Fitted:
    """Return the model as it is."""

    def answer(part: str) -> Tensor:
        examples = encoded_part(case.parts, part).examples
        return in_batches(examples, lambda some: label_logits(case.model, some.to(case.device)))

    return Fitted(answer, "server")
