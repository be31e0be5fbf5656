"""A tokenizer that reads bytes, and chat templates of the kinds that models come with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Sequence

_BEGIN = "{% for m in messages %}"
_END = "{% endfor %}"
_HEADER = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"

CHATML = _BEGIN + "<|{{ m.role }}|>\n{{ m.content }}\n" + _END + _HEADER
TRIMMING = _BEGIN + "<|{{ m.role }}|>{{ m.content | trim }}" + _END + _HEADER
PARTS = (
    _BEGIN + "{{ m.role | upper }}: {% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }} "
    "{% endfor %}" + _END + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PARTS_BY_INDEX = (
    _BEGIN + "{{ m.role }}{% if m.content[0].type == 'image' %}:{% else %}: {% endif %}{% for line in m.content %}"
    "{% if line.type == 'text' %}{{ line.text }}{% endif %}{% endfor %}\n" + _END + _HEADER
)
NO_SYSTEM = _BEGIN + "{% if m.role != 'system' %}<|{{ m.role }}|>\n{{ m.content }}\n{% endif %}" + _END + _HEADER
LAST_ONLY = "{% set m = messages[-1] %}<|{{ m.role }}|>\n{{ m.content }}\n" + _HEADER
CUTTING = _BEGIN + "<|{{ m.role }}|>\n{{ m.content[:10] }}\n" + _END + _HEADER
NO_HEADER = _BEGIN + "<|{{ m.role }}|>\n{{ m.content }}\n" + _END
LLAMA = "{{ bos_token }}" + CHATML
MISTRAL = (
    "{{ bos_token }}"
    + _BEGIN
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}{% endif %}"
) + _END
FORGETS_THOUGHTS = (
    _BEGIN + "<|{{ m.role }}|>\n{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}\n" + _END
) + _HEADER
HYBRID = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
OPENS = (
    CHATML
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>{% endif %}"
)
PARTS_FOR_USERS = (
    _BEGIN + "<|{{ m.role }}|>{% if m.role == 'user' %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}" + _END + _HEADER
)
CHANNELS = (
    _BEGIN + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
    "<|end|>" + _END + "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TOOLS = (
    _BEGIN + "<|{{ m.role }}|>{{ m.name }}{% if loop.last %}{{ m.reasoning_content }}{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
) + _END


def byte_tokenizer(template: object = None, *, prefix: str = "<s>", added: Sequence[str] = ()) -> Any:
    """One token a byte. `prefix` is what the tokenizer adds to a text, `added` are special tokens, too."""
    special = ["<pad>", "<s>", "</s>", "[gMASK]", "<sop>", *added]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if prefix:
        before = [(token, vocabulary[token]) for token in prefix.split()]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{prefix} $A", special_tokens=before)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = template
    return fast


class Processor:
    """A tokenizer with a processor's call: its first argument is the images."""

    def __init__(self, tokenizer, chat_template=None) -> None:
        self.tokenizer, self.chat_template = tokenizer, chat_template

    def __call__(self, images=None, text=None, **options):
        raise ValueError(f"Incorrect image source: {images!r}")
