"""SetFit (Tunstall et al. 2022): a sentence encoder that learns from pairs of training texts, and a classifier on it.

The encoder is the model's body, with the mean of its last hidden states. It reads the texts without a template. The
package `setfit` trains both parts.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from bbt_fast.benchmarks.methods.method import Case, Fitted
from bbt_fast.export.errors import MissingExtraError
from bbt_fast.tuner.data.splits import Row


def setfit(case: Case) -> Fitted:
    """Train the encoder on pairs of texts, and logistic regression on what it makes of a text.

    Raises:
        MissingExtraError: without `setfit`.
    """
    try:
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments
        from setfit import logging as own_logging
        from sklearn.linear_model import LogisticRegression
        from transformers.trainer_callback import PrinterCallback
    except ImportError as error:
        raise MissingExtraError("SetFit needs setfit: `pip install 'bbt-fast[compare]'`.") from error
    own_logging.set_verbosity_error()
    setting, between = case.setting, case.encoder.tokenizer.sep_token or "\n"
    rows = {"text": texts(case.rows("train"), between), "label": case.labels("train").tolist()}
    with TemporaryDirectory() as folder, _quiet(), _on(case.device):
        model = SetFitModel(_encoder(case, folder), LogisticRegression(max_iter=1000))
        arguments = TrainingArguments(
            folder,
            batch_size=setting["batch_size"],
            num_epochs=setting["epochs"],
            num_iterations=setting["pairs"],
            body_learning_rate=setting["lr"],
            seed=case.options.seed,
            report_to="none",
            logging_strategy="no",
            logging_first_step=False,
            save_strategy="no",
            show_progress_bar=False,
        )
        trainer = Trainer(model, arguments, train_dataset=Dataset.from_dict(rows))
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def answer(part: str) -> Tensor:
        found = model.predict_proba(texts(case.rows(part), between), show_progress_bar=False)
        return torch.log(torch.as_tensor(found))

    weights = sum(parameter.numel() for parameter in model.model_body.parameters())
    return Fitted(answer, "user", notes={"trained_parameters": weights})


def texts(rows: Sequence[Row], between: str) -> list[str]:
    """Return the texts of rows; those of a pair become one, with the tokenizer's separator between them."""
    return [row.text_a if row.text_b is None else f"{row.text_a} {between} {row.text_b}" for row in rows]


def _encoder(case: Case, folder: str) -> Any:
    """Return the model's body as a model of `sentence-transformers`, which loads it from a folder."""
    from sentence_transformers import SentenceTransformer

    whole: Any = case.model
    whole.base_model.save_pretrained(folder)
    case.encoder.tokenizer.save_pretrained(folder)
    whole.to("meta")  # frees the memory of the first copy
    encoder = SentenceTransformer(folder, device=str(case.device))
    encoder.max_seq_length = case.encoder.max_text_length
    if encoder.tokenizer.pad_token is None:
        encoder.tokenizer.pad_token = encoder.tokenizer.eos_token
    return encoder


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars, and what the packages report: heads that an encoder lacks, memory that no GPU shares."""
    import datasets

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Let the trainer of `transformers`, which takes a GPU where there is one, take this device."""
    os.environ["ACCELERATE_USE_CPU"] = str(device.type == "cpu").lower()
    try:
        yield
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
