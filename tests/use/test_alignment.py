"""Alignments: the model's own weights, under readable labels, as a picture."""

import pytest
import torch

from fastseq.data import Tokenizer
from fastseq.models import CheckpointError, Seq2Seq, Seq2SeqConfig
from fastseq.use import TextError, Translator, align, plot
from fastseq.use.alignment import token_labels


@pytest.fixture(scope="module")
def translator(translation) -> Translator:
    return Translator.open(translation.folder)


def test_weights_are_those_of_the_models_steps(translator):
    text = "the cat follows a bird today"
    found = align(translator, text, beam_size=3)
    assert found.text == translator([text], beam_size=3)[0]
    tokenizer, model = translator.tokenizer, translator.model
    source = torch.tensor([tokenizer.encode_source(text)])
    target = [2, *tokenizer.encode(found.text)]
    assert found.weights.shape == (len(target) - 1, source.shape[1])
    state = model.begin(
        source, torch.tensor([source.shape[1]]), max_length=len(target), need_attention=True
    )
    for row, token in zip(found.weights, target):
        model.step(torch.tensor([[token]]), state)
        torch.testing.assert_close(row, state.attention[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(len(target) - 1))
    assert found.source[:2] == ["the", "cat"]
    assert found.source[-1] == "</s>"


def test_any_translation_can_be_aligned(translator):
    found = align(translator, "the cat sees a bird", "un oiseau")
    assert (found.target, found.text) == (["un", "oiseau"], "un oiseau")


def test_what_cannot_be_aligned_is_told(translator):
    with pytest.raises(TextError, match="nothing to align: ' ' and ''"):
        align(translator, " ")
    with pytest.raises(TextError, match="nothing to align"):
        align(translator, "the cat", " ")
    if translator.max_length is not None:
        with pytest.raises(TextError, match=r"texts\[1\]: \d+ tokens, the model writes at most 39"):
            align(translator, "the cat", "le chat " * 30)
    config = Seq2SeqConfig(vocab_size=len(translator.tokenizer), attention=None, hidden_size=16)
    without = Translator(Seq2Seq(config), translator.tokenizer)
    with pytest.raises(CheckpointError, match="has no attention"):
        align(without, "the cat")


def test_labels_show_where_words_go_on():
    texts = ["unhappy unhappily happy $5 déjà"] * 3
    tokenizer = Tokenizer.train(texts, 270)
    ids = tokenizer.encode("unhappily, $5 日")
    labels = token_labels(tokenizer, [*ids, 3])
    assert labels[0].startswith("u")
    assert "".join(label.strip("·␣") for label in labels).startswith("unhappily,$5")
    later = labels[1 : labels.index(",")]
    assert later
    assert all(label.startswith("·") for label in later)
    assert labels[-1] == "</s>"
    pieces = Tokenizer.train(texts, 105, kind="wordpiece")
    labels = token_labels(pieces, [2, *pieces.encode("unhappy"), 3])
    assert labels[0] == "[CLS]"
    assert all(label.startswith("·") for label in labels[2:-1])
    assert "".join(label.strip("·") for label in labels[1:-1]) == "unhappy"


def test_the_picture_has_every_token_and_takes_dollars_as_they_are(translator):
    pytest.importorskip("matplotlib")
    found = align(translator, r"the $\cat$ sees $a^$ bird", "le chat voit")
    figure = plot(found)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == found.source
    assert [label.get_text() for label in axes.get_yticklabels()] == found.target
    torch.testing.assert_close(torch.tensor(axes.images[0].get_array()), found.weights)
    figure.canvas.draw()  # a formula that is none would raise here
    box = figure.get_tightbbox()  # in inches: nothing sticks out
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()
