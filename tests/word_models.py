"""A word tokenizer, a model that answers as told, and a tiny model that can be steered."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from rotalabs_steer import SteeringVector

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "user",
    "assistant",
    "[INST]",
    "[/INST]",
    "Sorry,",
    "no.",
    "Sure,",
    "here",
    "An",
]
MISTRAL = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST] {% endfor %}"


@pytest.fixture
def words():
    """A tokenizer of 128 words that adds a BOS, as Llama's does, and has a template with another."""
    vocabulary = [*WORDS, *(f"w{number}" for number in range(len(WORDS), 128))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = MISTRAL
    return fast


class ScriptedModel(torch.nn.Module):
    """Answers every prompt with the same ids, and records what it was given."""

    def __init__(self, answer: list[int]) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.embeddings = torch.nn.Embedding(1, 1)
        self.answer = answer
        self.calls: list[dict] = []

    def get_input_embeddings(self):
        return self.embeddings

    def generate(self, input_ids, **options):
        self.calls.append({"input_ids": input_ids, **options})
        answer = torch.tensor([self.answer]).expand(len(input_ids), -1)
        return torch.cat([input_ids, answer], dim=1)


@pytest.fixture
def scripted(words):
    """Makes a model that answers with the given words."""
    return lambda text: ScriptedModel([*words(text, add_special_tokens=False)["input_ids"], words.eos_token_id])


@pytest.fixture
def naming(words):
    """For a tiny model, a vector that makes it write one word whatever it is asked, and whether a text has the word."""

    def make(model):
        weight = model.lm_head.weight.detach()
        products = weight @ weight.T
        margins = 2 * products.diagonal() - products.topk(2, dim=0).values.sum(dim=0)  # positive: largest with itself
        margins[: len(WORDS)] = float("-inf")
        token = int(margins.argmax())
        vector = SteeringVector("naming", len(model.model.layers) - 1, weight[token] / weight[token].norm(), "tiny")
        word = words.convert_ids_to_tokens(token)
        return vector, lambda text: word in text.split()

    return make
