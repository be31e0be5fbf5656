"""Models as they come with `trust_remote_code`: their layers lay things out as they like."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

WIDTH = 16


class RemoteConfig(PretrainedConfig):
    model_type = "remote"

    def __init__(self, layout="sequence_first", **more):
        self.vocab_size, self.hidden_size, self.num_hidden_layers, self.layout = 64, WIDTH, 3, layout
        super().__init__(**more)


class RemoteLayer(nn.Module):
    """Mixes tokens by their running mean, along whichever dimension they are."""

    def __init__(self, sequence):
        super().__init__()
        self.sequence = sequence
        self.self_attn, self.mlp = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.post_mlp_layernorm = nn.LayerNorm(WIDTH)

    def forward(self, hidden):
        count = torch.arange(1, hidden.shape[self.sequence] + 1)
        mean = hidden.cumsum(self.sequence) / (count[:, None, None] if self.sequence == 0 else count[:, None])
        hidden = hidden + self.self_attn(mean)
        return hidden + 0.5 * self.post_mlp_layernorm(self.mlp(hidden)), None


class RemoteModel(PreTrainedModel, GenerationMixin):
    """ChatGLM's layout is "sequence_first"; "batch_first" is the usual one, "flat" has all tokens in one row."""

    config_class = RemoteConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, WIDTH)
        sequence = 0 if config.layout == "sequence_first" else 1
        self.layers = nn.ModuleList(RemoteLayer(sequence) for _ in range(config.num_hidden_layers))
        self.head = nn.Linear(WIDTH, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids=None, attention_mask=None, wanted=None, **more):
        if self.config.layout == "wants_more" and wanted is None:
            raise ValueError("wanted is missing")
        hidden = self.embeddings(input_ids)
        if self.config.layout == "sequence_first":
            hidden = hidden.transpose(0, 1)
        if self.config.layout == "flat":
            hidden = hidden.reshape(1, -1, WIDTH)
        for layer in self.layers:
            hidden, _ = layer(hidden)
        if self.config.layout == "sequence_first":
            hidden = hidden.transpose(0, 1)
        return CausalLMOutputWithPast(logits=self.head(hidden.reshape(*input_ids.shape, WIDTH)))


def remote_model(layout):
    torch.manual_seed(0)
    return RemoteModel(RemoteConfig(layout)).eval()
