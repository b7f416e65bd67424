"""SQuAD's files, windows over contexts, and the best answer of them."""

import json

import pytest
import torch

from fastseq.data import DataError, Question, Tokenizer, best_answer, read_squad, windows

CONTEXT = "The tower of Pisa leans. It was begun in 1173 by Bonanno Pisano, near the cathedral."


def layout(*entries, context=CONTEXT):
    return {
        "version": "v2.0",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": entries}]}],
    }


def entry(text, start=None):
    start = CONTEXT.find(text) if start is None else start
    return {
        "id": 7,
        "question": "When?",
        "answers": [{"text": text, "answer_start": start}],
    }


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([CONTEXT, "When was it begun?"] * 20, 300)


def test_both_versions_are_read(tmp_path):
    path = tmp_path / "squad.json"
    nothing = {"id": "n", "question": "Who?", "answers": [], "is_impossible": True}
    path.write_text(json.dumps(layout(entry("1173"), nothing)))
    first, second = read_squad(path)
    assert first == Question("7", "When?", CONTEXT, (("1173", CONTEXT.find("1173")),))
    assert second.answers == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [\n]', r"squad.json:2: not JSON"),
        ("[]", r"squad.json: not SQuAD's layout at data"),
        (json.dumps({"data": []}), "there are no questions"),
        (
            json.dumps(layout(entry("1174", 3))),
            r"data\[0\].paragraphs\[0\].qas\[0\]: .* no '1174' at 3",
        ),
        (json.dumps(layout({"id": 1, "question": "?"})), r"qas\[0\]: KeyError\('answers'\)"),
    ],
)
def test_other_files_are_told(tmp_path, content, message):
    path = tmp_path / "squad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_squad(path)


def question(answer="1173"):
    return Question("1", "When was it begun?", CONTEXT, ((answer, CONTEXT.find(answer)),))


def test_windows_cover_the_context_and_mark_the_answer(tokenizer):
    asked, whole = tokenizer.encode("When was it begun?"), tokenizer.encode(CONTEXT)
    found = windows(tokenizer, question(), len(asked) + 3 + 12, stride=5)
    assert len(found) > 3
    seen, marked = set(), 0
    for number, window in enumerate(found):
        begin = 5 * number
        piece = window.tokens[window.first : -1].tolist()
        assert piece == whole[begin : begin + 12]
        assert window.tokens[: window.first].tolist() == [2, *asked, 3]
        assert int(window.segments.sum()) == len(piece) + 1
        seen |= set(range(begin, begin + len(piece)))
        if window.end:
            marked += 1
            a = window.offsets[window.start - window.first][0]
            b = window.offsets[window.end - window.first][1]
            assert CONTEXT[a:b].strip() == "1173"
    assert seen == set(range(len(whole)))
    assert 0 < marked < len(found)


def test_a_context_that_fits_is_one_window(tokenizer):
    (window,) = windows(tokenizer, question(), 400)
    assert window.end >= window.start > window.first
    with pytest.raises(ValueError, match="max_length should be over"):
        windows(tokenizer, question(), 5)


def test_the_best_span_of_all_windows_wins(tokenizer):
    q = question("Bonanno Pisano")
    found = windows(tokenizer, q, 40, stride=8)
    starts = [torch.zeros(len(w.tokens)) for w in found]
    ends = [torch.zeros(len(w.tokens)) for w in found]
    best = max(range(len(found)), key=lambda i: found[i].end)
    starts[best][found[best].start] = 5.0
    ends[best][found[best].end] = 4.0
    text, score = best_answer(q, found, starts, ends)
    assert (text.strip(), score) == ("Bonanno Pisano", 9.0)
    # An end before the start, and an answer that is too long, are none.
    text, _ = best_answer(q, found, ends, starts, max_answer=2)
    assert text.strip() != "Bonanno Pisano"


def test_no_answer_wins_where_it_may(tokenizer):
    q = question()
    (window,) = windows(tokenizer, q, 400)
    scores = torch.zeros(len(window.tokens))
    scores[0] = 1.0
    assert best_answer(q, [window], [scores], [scores]) == ("", -2.0)
    assert best_answer(q, [window], [scores], [scores], may_fail=False)[0] != ""
