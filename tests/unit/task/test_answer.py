"""The grammar of answers: what counts, and what must never."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardcase.task.answer import MAX_CHARACTERS, TAGS, format_answer, has_visible, parse_answer
from hardcase.task.prompt import format_completion
from hardcase.task.sample import LETTERS

SUBSETS = st.frozensets(st.sampled_from(LETTERS))
WS = st.text(" \t\n", max_size=4)
BODY = st.text(min_size=1, max_size=40).filter(lambda body: has_visible(body) and not any(tag in body for tag in TAGS))
SEPARATOR = st.sampled_from(["", " ", "   ", ",", ", ", " ,", "  ,  "])


def answered(choice: str) -> str:
    return f"<think>light left</think><answer>{choice}</answer>"


@pytest.mark.parametrize(
    ("choice", "letters"),
    [
        ("none", ""),
        ("A", "A"),
        ("ABCD", "ABCD"),
        ("DBCA", "ABCD"),
        ("A, C", "AC"),
        ("A,C", "AC"),
        ("A C", "AC"),
        ("A , C", "AC"),
        ("A ,C", "AC"),
        ("AB, C D", "ABCD"),
        (" \t\nA\n", "A"),
        ("\nnone\t", ""),
        (f"A{' ' * 15_000},{' ' * 1_000}B", "AB"),
    ],
)
def test_choice_in_the_grammar_is_read(choice: str, letters: str) -> None:
    assert parse_answer(answered(choice)) == frozenset(letters)


@pytest.mark.parametrize(
    "choice",
    [
        "", " ", "a", "E", "AE", "AA", "A,B,A", "ABCDA", "A,,B", "A, ,B", ",A", "A,", "A, ", "A;B", "A/B", "A.",
        "A and B", "None", "NONE", "nonE", "noneA", "Anone", "none none", "none,", "no ne", "[]", "{A}", "*A*",
        "A\tB", "A\nB", "A,\nB", "A\u00a0B", "A\u200bB", "\u200bA", "A\ufeff", "A\x00", "\x00", "\u0410", "\u0391",
        "\uff21", "\u0392", "\u0421", "\U0001d400", "\U0001f170", "\u24b6", "A\u0301", "\u00c1", "n\u043ene",
        "<b>A</b>", "A<answer>B", "A</answer><answer>B", "A\r", "\r\nA", "A\u2028", "A\x0b", "A\x0c", "A\x85", "A，B",
        "A、B", f"A{' ' * 16_000}E", f"A{', ' * 8_000}B",
    ],
)  # fmt: skip
def test_choice_outside_the_grammar_is_invalid(choice: str) -> None:
    assert parse_answer(answered(choice)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "A",
        "none",
        "<answer>A</answer>",
        "<think>x</think>",
        "<think>x</think>A",
        "<think>x<answer>A</answer>",
        "x</think><answer>A</answer>",
        "<think>x</think><answer>A",
        "<think>x</think>A</answer>",
        "<think>x</think><answer>A</answer></answer>",
        "<think>x</think><answer><answer>A</answer>",
        "<think>x</think><answer>A</answer><answer>A</answer>",
        "<think>x</think><answer>A</answer><answer>B</answer>",
        "<think>x</think><answer>A</answer>.",
        "<think>x</think><answer>A</answer>\x00",
        "<think>x</think><answer>A</answer>\u200b",
        "<think>x</think><answer>A</answer>\u00a0",
        "<think>x</think><answer>A</answer><|im_end|>",
        "Sure: <think>x</think><answer>A</answer>",
        "\ufeff<think>x</think><answer>A</answer>",
        "<think>x</think> so <answer>A</answer>",
        "<think>x</think>\u3000<answer>A</answer>",
        "<think><think>x</think><answer>A</answer>",
        "<think><think>x</think></think><answer>A</answer>",
        "<think>x</think></think><answer>A</answer>",
        "<think>x</think><think>y</think><answer>A</answer>",
        "<think>x<answer>B</answer></think><answer>A</answer>",
        "<think>x<answer></think><answer>A</answer>",
        "<think>x</answer></think><answer>A</answer>",
        "<answer>A</answer><think>x</think>",
        "<THINK>x</THINK><answer>A</answer>",
        "<think>x</think><Answer>A</Answer>",
        "< think>x</think><answer>A</answer>",
        "<think>x</think><answer >A</answer>",
        "＜think＞x＜/think＞<answer>A</answer>",
        "\r\n<think>x</think><answer>A</answer>",
        "<think>x</think>\r\n<answer>A</answer>",
        "<think>x</think><answer>A</answer>\r\n",
        "</think><answer>A</answer>",
        "<think></think><answer>A</answer>",
    ],
)
def test_text_around_the_choice_must_follow_the_grammar(text: str) -> None:
    assert parse_answer(text) is None


@pytest.mark.parametrize("layout", [" \n\t{}", "{}\n\n", "\n{} \t"])
def test_spaces_tabs_and_newlines_around_the_tags_are_fine(layout: str) -> None:
    assert parse_answer(layout.format("<think>x</think>\n <answer> AC\n</answer>")) == {"A", "C"}


@pytest.mark.parametrize(
    "blank",
    [
        "", " ", "\n\t", "\r\n", "\x00", "\x07\x1b", "\x7f", "\u00a0", "\u3000", "\u2028", "\u200b",
        "\u200b\u200c\u200d\u2060\ufeff", "\u00ad", "\u061c", "\u202e", "\ufe0f", "\u034f", "\u0301", "\u3164",
        "\u115f\u1160\uffa0", "\u2800", "\U000e0020", "\ud800", "\ue000", "\U0010ffff", "\u180e", "\u17b5",
    ],
)  # fmt: skip
def test_reasoning_without_a_visible_character_is_invalid(blank: str) -> None:
    assert parse_answer(f"<think>{blank}</think><answer>A</answer>") is None
    assert parse_answer(f"<think>{blank}.</think><answer>A</answer>") == {"A"}


@pytest.mark.parametrize(
    "body", ["x", "7", "?", "光", "é", "👍", "<", "</", "<thin", "think>", "<THINK>", "a\x00b", "a\r\nb", "\ud800a"]
)
def test_reasoning_may_be_any_visible_text_without_the_tags(body: str) -> None:
    assert parse_answer(f"<think>{body}</think><answer>none</answer>") == frozenset()


def test_length_limit_counts_characters_and_includes_the_last() -> None:
    frame = len(answered("A")) - len("light left")
    for body in ("x", "光"):
        longest = f"<think>{body * (MAX_CHARACTERS - frame)}</think><answer>A</answer>"
        assert len(longest) == 16_384
        assert parse_answer(longest) == {"A"}
        assert parse_answer(longest + " ") is None


@pytest.mark.parametrize(
    "unit", ["<think>", "<answer>", "</think>", "A ", " ", "<", "<think>x</think><answer>A</answer>"]
)
def test_a_megabyte_of_text_is_invalid(unit: str) -> None:
    assert parse_answer(unit * (2**20 // len(unit))) is None
    assert parse_answer(unit * (MAX_CHARACTERS // len(unit))) is None
    assert parse_answer(answered("A") + unit * (2**20 // len(unit))) is None


@pytest.mark.parametrize("thing", [None, b"<think>x</think><answer>A</answer>", 7, 1.5, True, [], {}, ["A"], object()])
def test_what_is_not_text_is_invalid(thing: object) -> None:
    assert parse_answer(thing) is None


@given(st.text() | st.lists(st.sampled_from([*TAGS, "A", "B", "none", " ", ",", "x", "\n"])).map("".join))
def test_any_text_is_read_without_raising_and_only_to_known_letters(text: str) -> None:
    read = parse_answer(text)
    assert read is None or read <= set(LETTERS)


@given(
    BODY,
    st.permutations(LETTERS),
    st.integers(0, 4),
    st.lists(SEPARATOR, min_size=3, max_size=3),
    st.lists(WS, min_size=5, max_size=5),
)
def test_every_text_of_the_grammar_is_read(
    body: str, order: list[str], size: int, separators: list[str], ws: list[str]
) -> None:
    letters = order[:size]
    choice = "".join(gap + letter for gap, letter in zip(["", *separators], letters, strict=False)) or "none"
    text = f"{ws[0]}<think>{body}</think>{ws[1]}<answer>{ws[2]}{choice}{ws[3]}</answer>{ws[4]}"
    assert parse_answer(text) == frozenset(letters)


@given(BODY, SUBSETS, st.integers(0, 1_000), st.characters(exclude_characters=" \t\n"))
def test_one_more_character_outside_the_reasoning_never_changes_the_answer_unseen(
    body: str, truth: frozenset[str], place: int, character: str
) -> None:
    text = format_completion(body, truth)
    tail = len(text) - len(f"</think><answer>{format_answer(truth)}</answer>")
    at = tail + 1 + place % (len(text) - tail)
    read = parse_answer(text[:at] + character + text[at:])
    if character in LETTERS and truth:
        assert read is None or read == truth | {character}
    else:
        assert read is None or (character == "," and read == truth)


@given(BODY, SUBSETS)
def test_what_we_teach_is_read_as_what_was_meant(body: str, truth: frozenset[str]) -> None:
    assert parse_answer(format_completion(body, truth)) == truth


def test_answers_are_written_in_order_and_none_for_no_letter() -> None:
    assert format_answer({"C", "A"}) == "AC"
    assert format_answer(frozenset()) == "none"
