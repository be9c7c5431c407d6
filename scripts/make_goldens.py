"""Write tiny random models, prompts and the models' answers for the tests: tests/goldens/FAMILY/.

    python scripts/make_goldens.py                        write them
    python scripts/make_goldens.py --check FOLDER         compare this script's answers with those in a folder

The stock `transformers` model computes the answers in fp32 with eager attention; hooks insert the prompts. The script
uses no code of bbt-fast. ``--check`` compares the hooks' answers with those of the original implementation, in files of
the same format.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens"
N_PROMPT_TOKENS, CANDIDATES, VOCABULARY = 7, 3, 60
LENGTHS = (20, 14, 17)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "roberta": ("AutoModelForMaskedLM", "roberta", {}),
    "bert": ("AutoModelForMaskedLM", "bert", {}),
    "electra": ("AutoModelForMaskedLM", "electra", {"embedding_size": 12}),
    "bart": (
        "AutoModelForSeq2SeqLM",
        "bart",
        {"d_model": 16, "init_std": 0.3}
        | {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        | {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    ),
    "t5": ("AutoModelForSeq2SeqLM", "t5", {"d_kv": 8, "d_ff": 24}),
    "gpt2": ("AutoModelForCausalLM", "gpt2", {"n_inner": 24}),
}
"""By family: the class, the model type, and the fields beside SIZES."""
TOLERANCE = {"electra": 2e-4}


def load(family: str, folder: Path | None = None) -> Any:
    """Return a family's model from a folder, or a new one with random weights, biases and norms."""
    class_name, model_type, own = MODELS[family]
    auto = getattr(transformers, class_name)
    if folder is not None:
        return auto.from_pretrained(folder, attn_implementation="eager").eval()
    torch.manual_seed(list(MODELS).index(family))
    model = auto.from_config(transformers.AutoConfig.for_model(model_type, **SIZES, **own), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def draw_texts(family: str, start: int) -> dict[str, np.ndarray]:
    """Draw texts of a special token, placeholders, words and the answer's token."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(5, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    ids[:, : start + N_PROMPT_TOKENS] = 4
    mask = (torch.arange(max(LENGTHS)) < lengths[:, None]).long()
    ids = ids.where(mask.bool(), torch.tensor(SIZES["pad_token_id"]))
    texts = {"input_ids": ids, "attention_mask": mask, "mask_pos": lengths - 2}
    if family == "t5":
        texts["decoder_input_ids"] = torch.tensor([[0, 3]]).repeat(len(LENGTHS), 1)
    return {name: tensor.numpy() for name, tensor in texts.items()}


def answer(family: str, model: Any, texts: Any, prompts: Tensor, mode: str) -> Tensor:
    """Return the full-vocabulary logits [N, V] at the answer's position under prompts [n, H], or [L, n, H] if deep."""
    ids, mask, position = (torch.from_numpy(texts[name]).long() for name in ("input_ids", "attention_mask", "mask_pos"))
    if mode == "cat":
        return _answer_cat(model, ids, mask, position, prompts)
    start = 0 if family in ("t5", "gpt2") else 1
    encoder = model.get_encoder() if family in ("bart", "t5") else model.base_model
    layers: nn.ModuleList = next(
        encoder.get_submodule(path)
        for path in ("encoder.layer", "layers", "block", "h")
        if path.split(".")[0] in dict(encoder.named_children())
    )
    entrances = {"roberta": "embeddings", "bert": "embeddings", "electra": "embeddings_project"}

    def joined(states: Tensor, prompt: Tensor) -> Tensor:
        return states + nn.functional.pad(prompt, (0, 0, start, states.shape[1] - start - len(prompt)))

    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with ExitStack() as hooks, torch.no_grad():
        if prompts.ndim == 3:
            for layer, prompt in zip(layers, prompts, strict=True):
                hook = partial(lambda prompt, _, given: (joined(given[0], prompt), *given[1:]), prompt)
                hooks.callback(layer.register_forward_pre_hook(hook).remove)
        elif family in entrances:
            module = encoder.get_submodule(entrances[family])
            hooks.callback(module.register_forward_hook(lambda _, __, out: joined(out, prompts)).remove)
        else:
            embedded = encoder.get_input_embeddings()(ids)
            inputs["inputs_embeds"] = joined(embedded, prompts)
            inputs.pop("input_ids")
        if family == "bart":
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=ids)
        if family == "t5":
            inputs["decoder_input_ids"] = torch.from_numpy(texts["decoder_input_ids"]).long()
            position = torch.ones_like(position)
        if family == "gpt2":
            position = mask.sum(dim=1) - 1
        logits: Tensor = model(**inputs).logits
    return logits[torch.arange(len(ids)), position]


def _answer_cat(model: Any, ids: Tensor, mask: Tensor, position: Tensor, prompt: Tensor) -> Tensor:
    """Put the prompt before the embedded text of a RoBERTa, and run its layers."""
    with torch.no_grad():
        states = model.roberta.embeddings(input_ids=ids)
        states = torch.cat([prompt.expand(len(ids), -1, -1), states], dim=1)
        seen = torch.cat([torch.ones(len(ids), len(prompt)), mask.float()], dim=1)
        hidden = (1 - seen)[:, None, None] * torch.finfo(torch.float32).min
        for layer in model.roberta.encoder.layer:
            out = layer(states, hidden)
            states = out if isinstance(out, Tensor) else out[0]
        logits: Tensor = model.lm_head(states)
    return logits[torch.arange(len(ids)), position + len(prompt)]


def make(family: str, folder: Path) -> None:
    """Write a family's model, texts, prompts and answers."""
    model = load(family)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    texts = draw_texts(family, 0 if family in ("t5", "gpt2") else 1)
    generator = torch.Generator().manual_seed(1)
    layers, width = int(model.config.num_hidden_layers), int(model.config.hidden_size)
    shapes = {"shallow": (N_PROMPT_TOKENS, width), "deep": (layers, N_PROMPT_TOKENS, width)}
    for name, shape in shapes.items():
        if (name, family) == ("deep", "electra"):
            continue
        found = dict(texts)
        for mode in ("add", "cat") if (name, family) == ("shallow", "roberta") else ("add",):
            for k in range(CANDIDATES):
                prompt = torch.randn(shape, generator=generator)
                found[f"prompt_{mode}_{k}"] = prompt.numpy()
                found[f"logits_{mode}_{k}"] = answer(family, model, texts, prompt, mode).numpy()
        np.savez_compressed(folder / f"{name}.npz", **found)


def check(family: str, folder: Path) -> float:
    """Return the largest difference between this script's answers and those in a folder."""
    model, worst = load(family, folder), 0.0
    for name in ("shallow", "deep"):
        if not (folder / f"{name}.npz").exists():
            continue
        data = np.load(folder / f"{name}.npz")
        for key in data.files:
            if key.startswith("logits_"):
                _, mode, k = key.split("_")
                found = answer(family, model, data, torch.from_numpy(data[f"prompt_{mode}_{k}"]).float(), mode)
                worst = max(worst, float((found - torch.from_numpy(data[key])).abs().max()))
    return worst


def main() -> int:
    """Write the goldens, or check a folder of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="holds a folder for each family")
    parser.add_argument("--out", type=Path, default=GOLDENS, help="where to write (default: tests/goldens)")
    given = parser.parse_args()
    wrong = 0
    for family in MODELS:
        if given.check is None:
            make(family, given.out / family)
            print(f"{family}: {given.out / family}")
        else:
            worst = check(family, given.check / family)
            wrong += worst > TOLERANCE.get(family, 2e-5)
            print(f"{family}: largest difference {worst:.1e}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
