"""Checkpoints load whole, in whichever form their authors saved them, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedModel,
)

from bbt_fast.engine import Examples, load_engine
from bbt_fast.export.errors import UsageError
from bbt_fast.export.families import family_of
from bbt_fast.export.loading import load_model
from bbt_fast.export.model import StagedModel

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
IDS = torch.tensor([[2, 9, 31, 7, 3, 11]])


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def test_a_checkpoint_without_its_language_model_head_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"lacks \d+ weights of BertForMaskedLM \(cls.*its answers would be random"):
        load_model(tmp_path)


def test_the_fingerprint_is_of_weights_and_configuration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = BertForMaskedLM(BertConfig(**SIZES))

    def fingerprint(folder: str, **change: object) -> str:
        saved.save_pretrained(tmp_path / folder)
        model = load_model(tmp_path / folder)
        BertConfig(**{**model.config.to_dict(), **change}).save_pretrained(tmp_path / folder)
        return StagedModel(load_model(tmp_path / folder), "add", 5, "input").fingerprint

    first = fingerprint("one")
    assert fingerprint("moved", use_cache=False) == first
    assert fingerprint("relu", hidden_act="relu") != first
    with torch.no_grad():
        saved.bert.encoder.layer[-1].output.dense.weight[-1, -1] += 1e-3
    assert fingerprint("one weight") != first


def test_an_electra_discriminator_is_refused(tmp_path: Path) -> None:
    ElectraForPreTraining(ElectraConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="for ELECTRA, the generator"):
        load_model(tmp_path)


@pytest.mark.parametrize("legacy", [True, False])
def test_deberta_loads_with_either_head(legacy: bool, tmp_path: Path) -> None:
    saved = DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, legacy=legacy)).eval()
    saved.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if '"legacy"' not in line))
    if not legacy and Version(transformers.__version__) < Version("5.20"):
        with pytest.raises(UsageError, match=r"cannot load the head of this DeBERTa .* It needs version 5\.20"):
            load_model(tmp_path)
        return
    loaded = load_model(tmp_path)
    assert loaded.legacy is legacy
    torch.testing.assert_close(logits_of(loaded), logits_of(saved))


def save_cpt(folder: Path, prefix: str, stated_positions: int) -> BertForMaskedLM:
    """Save a random BERT in the form of CPT's checkpoints: BART's configuration, encoder names of its own."""
    torch.manual_seed(0)
    encoder = BertForMaskedLM(BertConfig(**SIZES, initializer_range=0.2)).eval()
    sizes = {f"encoder_{k}": v for k, v in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}
    BartConfig(
        vocab_size=60, d_model=16, max_position_embeddings=stated_positions, decoder_layers=1, pad_token_id=0, **sizes
    ).save_pretrained(folder)
    weights = {f"{prefix}encoder.{name}": value for name, value in encoder.bert.state_dict().items()}
    weights[f"{prefix}decoder.layers.0.fc1.weight"] = torch.zeros(32, 16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return encoder


@pytest.mark.parametrize(("prefix", "stated_positions"), [("", 40), ("model.", 80)])
def test_cpt_answers_from_its_encoder_with_the_second_segment_and_its_word_embeddings(
    prefix: str, stated_positions: int, tmp_path: Path
) -> None:
    encoder = save_cpt(tmp_path, prefix, stated_positions).bert
    model = load_model(tmp_path)
    assert family_of(model).name == "CPT"
    with torch.no_grad():
        hidden = encoder(input_ids=IDS, token_type_ids=torch.ones_like(IDS)).last_hidden_state
    expected = hidden @ encoder.embeddings.word_embeddings.weight.T
    torch.testing.assert_close(logits_of(model), expected, atol=1e-5, rtol=1e-5)
    engine = load_engine("torch", model, mode="cat", n_prompt_tokens=3, device="cpu")
    examples = Examples(IDS, torch.ones_like(IDS), torch.tensor([3]), torch.arange(60))
    assert engine.open(examples).evaluate(torch.zeros(1, 3, 16)).shape == (1, 1, 60)


def test_a_loaded_cpt_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    save_cpt(tmp_path, "", 40)
    model = load_model(tmp_path)
    model.save_pretrained(tmp_path / "again")
    assert "lm_head.weight" not in load_file(tmp_path / "again" / "model.safetensors")
    torch.testing.assert_close(logits_of(load_model(tmp_path / "again")), logits_of(model))


def test_pickled_weights_are_loaded_only_where_the_user_says_so(tmp_path: Path) -> None:
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"weights of .* cannot be loaded .*--allow_pickle also loads"):
        load_model(tmp_path)
    torch.testing.assert_close(logits_of(load_model(tmp_path, allow_pickle=True)), logits_of(model))


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_cannot_run_code_even_where_it_is_allowed(tmp_path: Path) -> None:
    BertConfig(**SIZES).save_pretrained(tmp_path)
    torch.save({"x": Trap(tmp_path / "trace")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"weights of .* cannot be loaded \(UnpicklingError"):
        load_model(tmp_path, allow_pickle=True)
    assert not (tmp_path / "trace").exists()


def test_code_beside_a_model_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}')
    with pytest.raises(UsageError, match=r"no model .* contains custom code"):
        load_model(tmp_path)
    assert not (tmp_path / "trace").exists()


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "nonsense": lambda content: b"\x00\xff" * 40,
    "huge": lambda content: (1 << 60).to_bytes(8, "little") + content[8:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_model_is_refused_by_its_name(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(UsageError, match=str(tmp_path)):
        load_model(tmp_path)


def test_a_cpt_of_another_width_than_it_states_is_refused(tmp_path: Path) -> None:
    save_cpt(tmp_path, "", 40)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"d_model": 16', '"d_model": 32'))
    with pytest.raises(UsageError, match=r"lacks \d+ weights|mismatch"):
        load_model(tmp_path)
