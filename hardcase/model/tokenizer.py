"""A word-level tokenizer made offline from the texts it must know, with InternVL's special tokens and chat template.

A hub checkpoint brings its own tokenizer; this one serves models built from nothing. `<think>` and `<answer>` stay
ordinary tokens: as special ones they would be hidden from the reward when a completion is decoded.
"""

from collections.abc import Iterable
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TAGS: Final = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
# A flagged letter stands alone, so that `AC` is two tokens; other words, digits and signs carry their leading space.
WORDS: Final = Regex(r" ?[A-D](?![a-z])| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s")
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
    """A tokenizer that knows the most frequent words of `texts`; anything else reads as `[UNK]`.

    Args:
        texts: what must be read and written: prompts, reasonings, captions.
        size: at most so many words, by frequency, then alphabet.
    """
    splitter = pre_tokenizers.Split(WORDS, behavior="isolated")
    counts: dict[str, int] = {}
    for text in texts:
        for word, _ in splitter.pre_tokenize_str(text):
            counts[word] = counts.get(word, 0) + 1
    letters = {form: 0 for letter in "ABCD" for form in (letter, f" {letter}")}
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    words = dict.fromkeys([*SPECIAL, *TAGS, "[UNK]", "\n", "none", *letters, *ranked])
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
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
