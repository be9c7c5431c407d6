"""Train the embedded demo: a small RoBERTa that knows the sentiment of a review, but its label words hardly show it.

Data card
    Texts    Drawn from the grammar in ``tuner/demo/sentences.py``: reviews in English that praise or blame. Nothing was
             written by people or taken from a data set. Sentences of the task's own splits never occur in training.
    Endings  Each review ends in a word of praise or blame. In "all in all it felt great ." the word depends on the
             class: from these endings the model learns the class. In "It was great ." it depends mostly on the writer:
             writers without remarks are polite and praise nearly everything, each domain has its own bias, and the
             class adds a little (``demo_corpus.py`` has the log-odds).
    Tags     Up to 60 words without meaning precede a review, with remarks of the writer among them ("to be honest :",
             "i complain a lot ."). So placeholder tokens before a text do not disturb the model.
    Result   With the task's template, "{text} . It was <mask> .", the model is poor: nearly everything is great. A
             prompt has to find the writer who is not polite; training shows no prompt vectors of that writer.
    Use      Demonstrations and tests of bbt-fast. It knows a few hundred words and has no knowledge of the world.

The model has 6 layers for BBTv2. Weights are stored in float16 and used in float32.

Example:
    python scripts/train_demo.py --output_dir tuner/demo      # about 5 minutes on two cores
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from demo_corpus import FELT, TAGS, TEMPLATE, WORDS, WRITERS, Document, draw_corpus
from safetensors.torch import save_file
from tokenizers import AddedToken, ByteLevelBPETokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, AutoTokenizer, RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

from bbt_fast.tuner.demo import rows

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
FIRST_TAG = 1000
"""The id of the first tag: the original implementation's placeholders are the tokens from here on."""
SPACE = "\u0120"
"""The space before a word in byte-level BPE."""
MASKED_SHARE = 0.1
IGNORED = -100
POOL = 2048
"""The number of documents that are drawn at a time and grouped by length."""

Encoded = tuple[list[int], list[int]]
"""A document's token ids, and the positions to mask."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Input ids, attention mask and labels, [B, S] each."""


def train_tokenizer(rng: Random, vocab_size: int) -> RobertaTokenizer:
    """Train byte-level BPE on documents, until nearly every word is one token; tags start at ``FIRST_TAG``."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    texts = (document.text for document in draw_corpus(rng, 20000, easy=0.0))
    bpe.train_from_iterator(texts, vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    model = json.loads(bpe.to_str())["model"]
    tags = [SPACE + tag for tag in TAGS]
    others = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in tags]
    return RobertaTokenizer(
        vocab={token: i for i, token in enumerate([*others[:FIRST_TAG], *tags, *others[FIRST_TAG:]])},
        merges=[tuple(merge) for merge in model["merges"]],
        add_prefix_space=True,
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=256,
    )


def initial_embeddings(rng: Random, tokenizer: RobertaTokenizer, size: int, scale: float) -> Tensor:
    """Return initial word embeddings, [V, size]: words of the same documents get similar vectors.

    They are the leading eigenvectors of log((c + k) / (e + k)), where c counts the documents with both words, and e is
    the expected c of independent words. From random embeddings, training takes far longer to find the classes.
    """
    n_documents, smoothing = 20000, 5.0
    bodies = tokenizer([d.body for d in draw_corpus(rng, n_documents, easy=1.0)], add_special_tokens=False)["input_ids"]
    holds = torch.zeros(n_documents, len(tokenizer))
    for row, ids in enumerate(bodies):
        holds[row, ids] = 1
    frequent = (holds.sum(0) > 20).nonzero().flatten()
    holds = holds[:, frequent].double()
    expected = torch.outer(holds.sum(0), holds.sum(0)) / n_documents
    association = ((holds.T @ holds + smoothing) / (expected + smoothing)).log().fill_diagonal_(0)
    values, vectors = torch.linalg.eigh(association)
    leading = values.abs().argsort(descending=True)[:size]
    found = vectors[:, leading] * values[leading].abs().sqrt()
    embeddings = scale * torch.randn(len(tokenizer), size)
    embeddings[frequent] = 0.3 * embeddings[frequent] + (scale * found / found.std()).float()
    return embeddings


def encode(rng: Random, tokenizer: RobertaTokenizer, documents: list[Document]) -> list[Encoded]:
    """Return the token ids of documents and the masked positions: mostly the ending's word, rarely other words."""
    preambles = tokenizer([" ".join(d.preamble) for d in documents], add_special_tokens=False)["input_ids"]
    bodies = tokenizer([d.body for d in documents], add_special_tokens=False)["input_ids"]
    encoded = []
    for preamble, body in zip(preambles, bodies, strict=True):
        ids = [tokenizer.bos_token_id, *preamble, *body, tokenizer.eos_token_id]
        last_word = len(ids) - 3
        masked = [i for i in range(1 + len(preamble), last_word) if rng.random() < MASKED_SHARE]
        encoded.append((ids, [*masked, last_word] if rng.random() < 0.9 else masked))
    return encoded


def batches(rng: Random, tokenizer: RobertaTokenizer, steps: int, batch_tokens: int) -> Iterator[Batch]:
    """Yield the batches: only easy documents in the first fifth of the steps, then fewer and fewer."""
    step = 0
    while step < steps:
        easy = min(1.0, max(0.2, 1.0 - 4 * (step / steps - 0.2)))
        encoded = sorted(encode(rng, tokenizer, list(draw_corpus(rng, POOL, easy))), key=lambda pair: len(pair[0]))
        groups: list[list[Encoded]] = [[]]
        for pair in encoded:
            if (len(groups[-1]) + 1) * len(pair[0]) > batch_tokens:
                groups.append([])
            groups[-1].append(pair)
        for group in sorted(groups, key=lambda _: rng.random())[: steps - step]:
            yield _batch(group, tokenizer)
            step += 1


def _batch(group: list[Encoded], tokenizer: RobertaTokenizer) -> Batch:
    """Pad the documents of a group to one length, and mask them."""
    input_ids = torch.full((len(group), max(len(ids) for ids, _ in group)), tokenizer.pad_token_id)
    labels = torch.full_like(input_ids, IGNORED)
    for row, (ids, masked) in enumerate(group):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, masked] = input_ids[row, masked]
        input_ids[row, masked] = tokenizer.mask_token_id
    return input_ids, (input_ids != tokenizer.pad_token_id).long(), labels


def train(model: RobertaForMaskedLM, stream: Iterator[Batch], steps: int, rate: float) -> None:
    """Train with AdamW, linear warm-up and linear decay; a progress bar shows the loss."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / (0.05 * steps), 1 - s / steps))
    average = 0.0
    bar = tqdm(stream, total=steps, desc="training", unit="step")
    for step, (input_ids, attention_mask, labels) in enumerate(bar):
        chosen = labels != IGNORED
        hidden = model.roberta(input_ids, attention_mask=attention_mask).last_hidden_state
        loss = cross_entropy(model.lm_head(hidden[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average += (loss.item() - average) * max(0.02, 1 / (step + 1))
        bar.set_postfix(loss=f"{average:.3f}", refresh=False)


def save(model: RobertaForMaskedLM, tokenizer: RobertaTokenizer, folder: Path) -> None:
    """Write weights in float16, tokenizer, and a configuration that loads the weights as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tied = set(model.all_tied_weights_keys)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


@torch.inference_mode()
def accuracy(model: RobertaForMaskedLM, tokenizer: RobertaTokenizer, template: str, n_placeholders: int = 0) -> float:
    """Return the accuracy of the label words on the demo's test rows, with no prompt.

    Args:
        model: a masked language model.
        tokenizer: its tokenizer.
        template: a text with the fields ``text`` and ``word``.
        n_placeholders: the number of tokens before the text, as in a run in add mode.
    """
    label_ids = tokenizer.convert_tokens_to_ids([SPACE + words[0] for words in WORDS])
    right = 0
    test = rows("test")
    for start in range(0, len(test), 50):
        part = test[start : start + 50]
        texts = [template.format(text=row["text"], word=tokenizer.mask_token) for row in part]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        placeholders = torch.arange(FIRST_TAG, FIRST_TAG + n_placeholders).expand(len(part), -1)
        ids = torch.cat([batch["input_ids"][:, :1], placeholders, batch["input_ids"][:, 1:]], dim=1)
        mask = torch.cat([torch.ones_like(placeholders), batch["attention_mask"]], dim=1)
        logits = model(ids, attention_mask=mask).logits[ids == tokenizer.mask_token_id][:, label_ids]
        right += int((logits.argmax(-1) == torch.tensor([row["label"] for row in part])).sum())
    return right / len(test)


def main() -> None:
    """Train and save the model, load it again, and print its zero-shot figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("tuner/demo"), help="folder of the model (default: %(default)s)")
    add("--steps", type=int, default=2500, help="optimizer steps (default: %(default)s)")
    add("--batch_tokens", type=int, default=2048, help="most tokens in a batch (default: %(default)s)")
    add("--learning_rate", type=float, default=1.5e-3, help="peak of the schedule (default: %(default)s)")
    add("--vocab_size", type=int, default=2000, help="most tokens in the vocabulary (default: %(default)s)")
    add("--hidden_size", type=int, default=64, help="width of the model (default: %(default)s)")
    add("--layers", type=int, default=6, help="depth of the model (default: %(default)s)")
    add("--seed", type=int, default=42, help="seed of texts and weights (default: %(default)s)")
    options = parser.parse_args()

    rng = Random(options.seed)
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(rng, options.vocab_size)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 16,
        intermediate_size=2 * options.hidden_size,
        max_position_embeddings=258,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = RobertaForMaskedLM(config)
    embeddings = initial_embeddings(rng, tokenizer, config.hidden_size, config.initializer_range)
    model.get_input_embeddings().weight.data.copy_(embeddings)
    train(model, batches(rng, tokenizer, options.steps, options.batch_tokens), options.steps, options.learning_rate)
    save(model, tokenizer, options.output_dir)

    saved = AutoModelForMaskedLM.from_pretrained(options.output_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.output_dir)
    size = (options.output_dir / "model.safetensors").stat().st_size
    print(f"{size / 1e6:.2f} MB, {saved.num_parameters():,} parameters, {len(tokenizer)} tokens")
    honest = next(writer for writer in WRITERS if writer.mood == 0)
    for name, template, n_placeholders in (
        ("zero-shot", TEMPLATE, 0),
        ("zero-shot after 50 placeholders", TEMPLATE, 50),
        (f"after {honest.remarks[0]!r}", f"{honest.remarks[0]} {TEMPLATE}", 0),
        ("with the ending that follows the class", FELT, 0),
    ):
        print(f"test accuracy, {name}: {accuracy(saved, tokenizer, template, n_placeholders):.1%}")


if __name__ == "__main__":
    main()
