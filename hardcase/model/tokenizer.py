"""Build a word-level tokenizer offline from given texts, with InternVL's special tokens and chat template.

It serves models with random initial weights; a hub checkpoint has its own tokenizer. `<think>` and `<answer>` are
ordinary tokens: as special tokens they would be missing from the decoded completion that the reward reads.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hardcase.task.answer import TAGS

SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
# A flagged letter is a token, so that `AC` is two. Words, digits and signs include their leading space.
TOKENS: Final = Regex(r" ?[A-D](?![a-z])| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s")
CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}{{ '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
<IMG_CONTEXT>{{ '\\n' }}
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant{{ '\\n' }}
{%- endif -%}"""


def build_tokenizer(texts: Iterable[str], size: int = 4096) -> PreTrainedTokenizerFast:
    """Build a tokenizer of the `size` most frequent tokens of `texts`; others are encoded as `[UNK]`."""
    splitter = pre_tokenizers.Split(TOKENS, behavior="isolated")
    counts = Counter(token for text in texts for token, _ in splitter.pre_tokenize_str(text))
    letters = [form for letter in "ABCD" for form in (letter, f" {letter}")]
    ranked = sorted(counts, key=lambda token: (-counts[token], token))[:size]
    vocabulary = dict.fromkeys([*SPECIAL, *TAGS, "[UNK]", "\n", "none", *letters, *ranked])
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.add_tokens(["<|im_start|>"], special_tokens=True)
    fast.add_tokens(list(TAGS), special_tokens=False)
    fast.chat_template = CHAT_TEMPLATE
    return fast
