"""Feature-Linear, Feature-MLP, Feature-BiLSTM: classifiers on the hidden states of the frozen model.

The model reads the same templated texts. The first two take the last hidden state at the answer's position, the third
those of all tokens. A server computes them once, and the user trains on them.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from bbt_fast.benchmarks.methods.method import Case, Fitted, Traffic
from bbt_fast.benchmarks.methods.prompting import in_batches, inputs_of
from bbt_fast.benchmarks.methods.training import train
from bbt_fast.export.errors import MissingExtraError
from bbt_fast.export.examples import Examples
from bbt_fast.export.families import family_of
from bbt_fast.export.layers import take

VALUE = 4
"""Bytes of a float32 and of a token id."""


def answer_states(model: Any, examples: Examples) -> Tensor:
    """Return the last hidden state at the answer's position, [N, H]."""
    outputs = model(**inputs_of(examples), output_hidden_states=True)
    seq2seq = family_of(model).kind == "seq2seq"
    states = outputs.decoder_hidden_states if seq2seq else outputs.hidden_states
    return take(states[-1], examples.answer_position, 1)[:, 0]


def token_states(model: Any, examples: Examples) -> Tensor:
    """Return the last hidden states of all tokens, [N, S, H]; for an encoder-decoder model those of the encoder."""
    outputs = model(**inputs_of(examples), output_hidden_states=True)
    seq2seq = family_of(model).kind == "seq2seq"
    states: Tensor = outputs.encoder_last_hidden_state if seq2seq else outputs.hidden_states[-1]
    return states


def linear(case: Case) -> Fitted:
    """Fit logistic regression on standardised features.

    Raises:
        MissingExtraError: without `scikit-learn`.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("Feature-Linear needs scikit-learn: `pip install 'bbt-fast[compare]'`.") from error
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=case.setting["C"], max_iter=1000))
    features = _at_answer(case, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        classifier.fit(features.numpy(), case.labels("train").numpy())

    def answer(part: str) -> Tensor:
        return torch.from_numpy(classifier.predict_log_proba(_at_answer(case, part).numpy()))

    held = [vars(step) for step in classifier.named_steps.values()]
    return Fitted(answer, "both", (features, *held), _traffic(case, features.numel()))


def mlp(case: Case) -> Fitted:
    """Train one hidden layer as wide as the features."""
    features = {part: _at_answer(case, part).to(case.device) for part in ("train", "dev")}
    width, classes = features["train"].shape[1], len(case.task.labels)
    head = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, classes)
    )
    head.to(case.device)

    def answer(part: str) -> Tensor:
        with torch.no_grad():
            return head(features[part] if part in features else _at_answer(case, part).to(case.device)).cpu()  # type: ignore[no-any-return]

    notes = train(case, head, lambda rows: head(features["train"][rows]), answer)
    held = (features, *head.parameters())
    return Fitted(answer, "both", held, _traffic(case, features["train"].numel()), notes)


class BiLstm(nn.Module):
    """[N, S, H] and lengths [N] -> [N, C]: one layer, from the last state of each direction."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(2 * (width // 2), classes))

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Read the states in both directions."""
        packed = pack_padded_sequence(self.norm(states), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        logits: Tensor = self.head(torch.cat([last[0], last[1]], dim=1))
        return logits


def bilstm(case: Case) -> Fitted:
    """Train an LSTM over the tokens, in both directions."""
    examples = {part: case.examples(part) for part in ("train", "dev")}
    # The states of the test set would not fit into memory: the answer computes them a batch at a time.
    with torch.no_grad():
        states = {part: token_states(case.model, some.to(case.device)) for part, some in examples.items()}
    width, classes = states["train"].shape[2], len(case.task.labels)
    head = BiLstm(width, classes).to(case.device)

    def logits(part: str, rows: Tensor) -> Tensor:
        lengths = examples[part].lengths[rows]
        return head(states[part][rows, : int(lengths.max())], lengths)  # type: ignore[no-any-return]

    def fresh(some: Examples) -> Tensor:
        return head(token_states(case.model, some.to(case.device)), some.lengths)  # type: ignore[no-any-return]

    def answer(part: str) -> Tensor:
        if part not in states:
            return in_batches(case.examples(part), fresh)
        with torch.no_grad():
            return logits(part, torch.arange(len(examples[part]))).cpu()

    notes = train(case, head, lambda rows: logits("train", rows), answer)
    down = int(examples["train"].lengths.sum()) * width
    return Fitted(answer, "both", (states, *head.parameters()), _traffic(case, down), notes)


def _at_answer(case: Case, part: str) -> Tensor:
    """Return a part's features, [N, H], on the CPU."""
    return in_batches(case.examples(part), lambda some: answer_states(case.model, some.to(case.device)))


def _traffic(case: Case, values: int) -> Traffic:
    """Return one query: it sends the training texts and receives this many values."""
    return Traffic(1, VALUE * int(case.parts.train.examples.lengths.sum()), VALUE * values)
