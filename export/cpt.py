"""CPT, the Chinese pre-trained unbalanced transformer: a BERT encoder with its word embeddings as output matrix.

`transformers` has no class for its checkpoints (``fnlp/cpt-large``), whose configurations say BART. The encoder is a
stock BERT with other weight names, and all tokens belong to the second segment. Like the original implementation,
black-box tuning reads the answer from the encoder's last layer. The decoder is not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, BertModel, BertPreTrainedModel, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

CPT = "cpt"
"""The model type that this module registers."""
ENCODER = r"^(?:model\.)?encoder\.(?=embeddings\.|encoder\.)"
"""The prefix of the encoder's weight names in a checkpoint."""


class CptConfig(BertConfig):  # type: ignore[no-untyped-call]
    """The encoder's configuration."""

    model_type = CPT


class CptForMaskedLM(BertPreTrainedModel):  # type: ignore[no-untyped-call]
    """A stock BERT without a head between its last layer and the vocabulary matrix."""

    config_class = CptConfig

    def __init__(self, config: CptConfig) -> None:
        super().__init__(config)
        self._tied_weights_keys = {"lm_head.weight": "bert.embeddings.word_embeddings.weight"}
        self.bert = BertModel(config, add_pooling_layer=False)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_output_embeddings(self) -> nn.Module:
        """Return the vocabulary matrix."""
        head: nn.Module = self.lm_head
        return head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> MaskedLMOutput:
        """Return the logits [N, S, V] of texts [N, S]."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return MaskedLMOutput(logits=self.lm_head(hidden))


AutoConfig.register(CPT, CptConfig)
AutoModelForMaskedLM.register(CptConfig, CptForMaskedLM)


def load_cpt(source: Any, config: Any, how: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the encoder of a CPT checkpoint; the other weights are ignored.

    Args:
        source: a hub id or folder.
        config: its BART configuration.
        how: further arguments of ``from_pretrained``.

    Returns:
        The model, and the loading info of `transformers`.
    """
    encoder = CptConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        num_hidden_layers=config.encoder_layers,
        num_attention_heads=config.encoder_attention_heads,
        intermediate_size=config.encoder_ffn_dim,
        max_position_embeddings=config.max_position_embeddings,
        pad_token_id=config.pad_token_id,
    )
    auto: Any = BertModel
    while True:
        bert, info = auto.from_pretrained(
            source, config=encoder, add_pooling_layer=False, key_mapping={ENCODER: ""}, **how
        )
        longest = {key: shape[0] for key, shape, _ in info["mismatched_keys"] if "position_embeddings" in key}
        if not longest or encoder.max_position_embeddings in longest.values():
            break
        encoder.max_position_embeddings = next(iter(longest.values()))  # the first release states the decoder's number
    model = CptForMaskedLM(encoder)
    model.bert = bert
    model.tie_weights()
    segments = bert.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        segments[0] = segments[1]  # CPT uses the second segment, a stock BERT defaults to the first
    return model, info
