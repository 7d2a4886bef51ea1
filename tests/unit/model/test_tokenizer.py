import pytest

from hardcase.model.tokenizer import build_tokenizer

TEXT = "<think>A white straight ok B none bad</think><answer>AC</answer>"


def test_a_completion_survives_the_round_trip_with_its_tags() -> None:
    tokenizer = build_tokenizer([TEXT])
    ids = tokenizer(TEXT + "<|im_end|>", add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT


def test_each_flagged_letter_is_a_token_of_its_own() -> None:
    tokenizer = build_tokenizer([TEXT])
    assert tokenizer.convert_ids_to_tokens(tokenizer("<answer>ABCD").input_ids) == ["<answer>", "A", "B", "C", "D"]


def test_an_unknown_word_reads_as_unknown_and_raises_nothing() -> None:
    tokenizer = build_tokenizer([TEXT])
    assert tokenizer.unk_token_id in tokenizer("Zürich 李").input_ids


def test_the_order_of_the_texts_does_not_change_the_vocabulary() -> None:
    texts = ["b c", "a b", "c a d"]
    assert build_tokenizer(texts).get_vocab() == build_tokenizer(texts[::-1]).get_vocab()


@pytest.mark.parametrize("size", [1, 3])
def test_the_vocabulary_keeps_the_most_frequent_words(size: int) -> None:
    vocabulary = build_tokenizer(["rare", *["often"] * 5], size=size).get_vocab()
    assert "often" in vocabulary
    assert ("rare" in vocabulary) == (size > 1)
