"""A session: N encoded examples on one engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ..export.errors import ShapeError
from ..export.model import StagedModel
from ..export.texts import KEY_INDEX
from ..export.words import class_logits
from .buckets import Bucket, Part
from .crew import Crew
from .embeddings import clipped_spread
from .faults import Fallible, MemoryShortError, is_out_of_memory, not_finite, persist, release_memory
from .prefix import SharedPrefix
from .runner import Runner
from .savings import Savings

TURNS = 4
"""The least number of parts per thread, if the work can be divided, so that threads finish at about the same time."""

logger = logging.getLogger(__name__)


class LocalEngine(Fallible, Protocol):
    """The members of an engine that a session uses."""

    precisions: ClassVar[dict[str, tuple[str, ...]]]
    staged: StagedModel
    savings: Savings
    dtype: torch.dtype
    crew: Crew

    def run_chain(
        self, run: Runner, first: int, hidden: Tensor, prompts: Sequence[Tensor], tensors: dict[str, Tensor]
    ) -> Tensor:
        """Run consecutive stages, one per prompt."""
        ...


class Session:
    """N encoded examples on one engine.

    ``evaluate`` at a layer depends only on the committed prompts of all other layers (zero by default). The activations
    below the layer are the same for every candidate. They are computed once with the committed prompts and cached, for
    one layer at a time, until a prompt below them changes.
    """

    def __init__(
        self, engine: LocalEngine, buckets: list[Bucket], classes: list[list[int]], bias: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Take encoded examples.

        Args:
            engine: the loaded engine.
            buckets: the examples; together they contain rows 0 to N-1.
            classes: the indices of each class's label words.
            bias: [W], added to the label words' logits.
            columns: [W], selects the label words' logits if the head computes more.
        """
        self.engine = engine
        self.layer_evaluations = 0
        """The number of layer evaluations so far, counted per candidate and example."""
        self._buckets = buckets
        self._classes, self._bias, self._columns = classes, bias, columns
        self._committed: list[Tensor | None] = [None] * engine.staged.n_stages
        self._zero = torch.zeros(
            1, engine.staged.n_prompt_tokens, engine.staged.hidden_size, dtype=engine.dtype, device=engine.device
        )
        self._prefix: SharedPrefix | None = None
        shared, run_prefix = buckets[0].encoded.prefix, buckets[0].run_prefix
        if shared is not None and run_prefix is not None:
            stages = shared.stages

            def count(stage: int, population: int) -> None:
                self.layer_evaluations += len(stages[stage].layers) * population

            self._prefix = SharedPrefix(shared, run_prefix, len(stages), self._prompt, count, engine.crew)

    def __len__(self) -> int:
        """Return N."""
        return sum(len(bucket.rows) for bucket in self._buckets)

    def evaluate(self, prompts: Tensor, layer: int = 0) -> Tensor:
        """Answer every candidate prompt.

        Args:
            prompts: [P, n, H], one soft prompt per candidate, any float dtype.
            layer: the layer whose input the prompts enter; 0 is the model's input.

        Returns:
            Logits of the classes, [P, N, C], float32, on the CPU. The host waits for the device only here.

        Raises:
            ShapeError: if the prompts do not fit the graph or there is no such layer.
            NumericsError: if a logit is NaN or infinite, also after a retry with smaller chunks.
            DeviceError: if the engine fails, also after a retry, or has not enough memory for one candidate.
        """
        self._check(prompts, layer, 3, "[P, n, H]")
        prompts = self._cast(prompts)
        largest = self._parts(len(prompts))[0].tokens
        return persist(self.engine, lambda: self._finite(lambda: self._logits(prompts, layer)), largest)

    def commit(self, prompt: Tensor, layer: int = 0) -> None:
        """Fix a layer's prompt ([n, H]) for all later calls.

        Raises:
            ShapeError: if the prompt does not fit the graph or there is no such layer.
        """
        self._check(prompt, layer, 2, "[n, H]")
        prompt = self._cast(prompt)[None]
        old = self._committed[layer]
        if torch.equal(prompt, self._zero if old is None else old):
            return
        self._committed[layer] = prompt
        if self._prefix is not None:
            self._prefix.forget(layer)
        for bucket in self._buckets:
            if layer < bucket.layer:
                bucket.rewind()

    def hidden_states(self, layer: int) -> Tensor:
        """Return the input of a layer for all real tokens under the committed prompts: [T, H] float32.

        The layer's own committed prompt has not joined yet. With cuts="input" these are the embeddings that the prompt
        joins; for positions after a shared prefix they are the input of the first layer.

        Raises:
            ShapeError: if there is no such layer.
            NumericsError, DeviceError: as ``persist`` says.
        """
        self._check_layer(layer)
        return persist(self.engine, lambda: self._finite(lambda: self._entered(layer)), None)

    def clipped_spread(self, layer: int) -> float:
        """Return the standard deviation of ``hidden_states`` without outliers."""
        return clipped_spread(self.hidden_states(layer))

    def _entered(self, layer: int) -> Tensor:
        """Return the input of a layer for all real tokens: [T, H] float32."""
        states = []
        self._climb(layer)
        for bucket in self._buckets:
            hidden = bucket.entering[0]
            if self._prefix is not None and (layer or self.engine.staged.mode == "add"):
                before = self._prefix.hidden_states(layer)[0].expand(hidden.shape[0], -1, -1)
                hidden = torch.cat([before, hidden], dim=1)
                if bucket.encoded.row is not None:
                    states.append(hidden[0, bucket.encoded.tensors[KEY_INDEX]].float())
                    continue
            lengths = bucket.encoded.lengths.to(hidden.device) + (hidden.shape[1] - bucket.encoded.hidden.shape[2])
            real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
            states.append(hidden[real].float())
        return torch.cat(states)

    def _logits(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer a population on all examples, [P, N, C], on the CPU."""
        logits = self._answers(prompts, layer)
        logits = logits if self._columns is None else logits[..., self._columns]
        return class_logits(logits, self._classes, self._bias).cpu()

    def _finite(self, work: Callable[[], Tensor]) -> Tensor:
        """Do some work without gradients, and check that its result is finite.

        After a failure the cached activations are discarded, because they may be its cause.
        """
        engine = self.engine
        try:
            with torch.inference_mode():
                found = work()
                if not bool(found.isfinite().all()):
                    raise not_finite(engine.name, engine.precision, engine.precisions[engine.device.type])
        except (RuntimeError, MemoryError):
            if self._prefix is not None:
                self._prefix.forget(0)
            for bucket in self._buckets:
                bucket.rewind()
            raise
        return found

    def _tokens(self, bucket: Bucket) -> int:
        """Return the number of tokens of one candidate on a bucket's examples."""
        return bucket.encoded.hidden.shape[1] * bucket.encoded.joined_length

    def _climb(self, layer: int) -> None:
        """Compute the activations below a layer for all buckets, from the cached ones."""
        for bucket in self._buckets:
            if layer < bucket.layer:
                bucket.rewind()
        behind = [bucket for bucket in reversed(self._buckets) if bucket.layer < layer]
        lowest = min((bucket.layer for bucket in behind), default=layer)
        below = [
            self._prompt(stage) if self._prefix is None else self._prefix.committed(stage)
            for stage in range(lowest, layer)
        ]

        def climbed(bucket: Bucket) -> Tensor:
            prompts = below[bucket.layer - lowest :]
            return self.engine.run_chain(
                bucket.run, bucket.layer, bucket.entering, prompts, bucket.encoded.tensors_for(1)
            )

        for bucket, hidden in zip(behind, self.engine.crew.each(climbed, behind), strict=True):
            for stage in range(bucket.layer, layer):
                self._count(bucket, stage, 1)
            bucket.layer, bucket.hidden = layer, hidden

    def _entering(self, prompts: Tensor, layer: int) -> list[Tensor]:
        """Return the prompts of all stages to run, [P or 1, n, W], for candidate prompts at a layer."""
        first = layer if self.engine.savings.reuse else 0
        if self._prefix is None:
            stages = range(first, self.engine.staged.n_stages)
            return [prompts if stage == layer else self._prompt(stage) for stage in stages]
        below = [self._prefix.committed(stage) for stage in range(first, layer)]
        return below + self._prefix.states(prompts, layer, self.engine.tokens_per_call)

    def _answers(self, prompts: Tensor, layer: int) -> Tensor:
        """Answer the population in parts, [P, N, W]; use smaller parts if the device runs out of memory."""
        population, reuse = len(prompts), self.engine.savings.reuse
        entering = self._entering(prompts, layer)

        def answer(part: Part) -> Tensor:
            some = [tensor if len(tensor) == 1 else tensor[part.candidates] for tensor in entering]
            return self._answer(part, some, layer)

        while True:
            parts = self._parts(population)
            try:
                if reuse:
                    self._climb(layer)
                answers = self.engine.crew.each(answer, parts)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._take_less(parts, error)
        for stage in range(layer if reuse else 0, self.engine.staged.n_stages):
            for bucket in self._buckets:
                self._count(bucket, stage, population)
        logits = answers[0].new_empty(population, len(self), answers[0].shape[2])
        for part, some in zip(parts, answers, strict=True):
            logits[part.candidates, part.bucket.rows] = some
        return logits

    def _parts(self, population: int) -> list[Part]:
        """Split a population's work into parts of one call each, large ones first."""
        most, threads = self.engine.tokens_per_call, self.engine.crew.size
        if threads > 1:
            total = population * sum(self._tokens(bucket) for bucket in self._buckets)
            most = min(most, total // (TURNS * threads))
        parts = []
        for bucket in self._buckets:
            tokens = self._tokens(bucket)
            count = -(-population // max(1, most // tokens))
            bounds = [population * number // count for number in range(count + 1)]
            parts += [Part(bucket, slice(*some), (some[1] - some[0]) * tokens) for some in pairwise(bounds)]
        return sorted(parts, key=lambda part: -part.tokens)

    def _take_less(self, parts: Sequence[Part], error: BaseException) -> None:
        """Limit calls to half of the largest part; if all parts have one candidate, use one thread.

        Raises:
            MemoryShortError: if the device has not enough memory for one candidate on one thread.
        """
        part = next((part for part in parts if len(part) > 1), None)
        if part is not None:
            size = len(part) // 2
            self.engine.tokens_per_call = self._tokens(part.bucket) * size
            logger.warning("out of memory: continuing with %d candidates at a time", size)
        elif self.engine.crew.size > 1:
            self.engine.crew.size = 1
            logger.warning("out of memory: continuing with one thread")
        else:
            bucket = parts[0].bucket
            raise MemoryShortError(
                f"{self.engine.device} has not enough memory for one candidate on {len(bucket.rows)} texts of "
                f"{bucket.encoded.hidden.shape[2]} tokens. Close other programs, or use a smaller model or "
                "--precision fp16."
            ) from error
        release_memory()

    def _answer(self, part: Part, entering: Sequence[Tensor], layer: int) -> Tensor:
        """Run the stages from a layer to the logits for some candidates on a bucket: [P, M, W]."""
        encoded, first, hidden = part.bucket.encoded, layer, part.bucket.entering
        if not self.engine.savings.reuse:
            first, hidden = 0, encoded.hidden.expand(len(part), -1, -1, -1)
        return self.engine.run_chain(part.bucket.run, first, hidden, entering, encoded.tensors_for(len(part)))

    def _count(self, bucket: Bucket, stage: int, population: int) -> None:
        self.layer_evaluations += len(bucket.encoded.stages[stage].layers) * population * len(bucket.rows)

    def _prompt(self, layer: int) -> Tensor:
        prompt = self._committed[layer]
        return self._zero if prompt is None else prompt

    def _cast(self, prompt: Tensor) -> Tensor:
        return prompt.detach().to(self.engine.device, self.engine.dtype).contiguous()

    def _check(self, prompt: Tensor, layer: int, ndim: int, shape: str) -> None:
        staged = self.engine.staged
        graph = f"{staged.model.config.model_type}-{staged.mode}-{self.engine.precision}"
        if prompt.ndim != ndim or prompt.numel() == 0:
            raise ShapeError(f"prompts must be {shape}, not {list(prompt.shape)}.")
        if prompt.shape[-2] != staged.n_prompt_tokens:
            raise ShapeError(
                f"prompts have {prompt.shape[-2]} tokens, but graph {graph!r} was built for {staged.n_prompt_tokens}. "
                f"Rebuild it with `bbt-fast export --n_prompt_tokens {prompt.shape[-2]}`, or tune with "
                f"--n_prompt_tokens {staged.n_prompt_tokens}."
            )
        if prompt.shape[-1] != staged.hidden_size:
            raise ShapeError(
                f"prompts are {prompt.shape[-1]} wide, but graph {graph!r} has hidden size {staged.hidden_size}. Use "
                "prompts of this model."
            )
        self._check_layer(layer)

    def _check_layer(self, layer: int) -> None:
        stages = self.engine.staged.n_stages
        if not 0 <= layer < stages:
            deep = ' Load the engine with cuts="layers" for deep prompts.' * (self.engine.staged.cuts == "input")
            raise ShapeError(f"layer is {layer}, but prompts can enter layers 0 to {stages - 1} here.{deep}")
