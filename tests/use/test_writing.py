"""Translators, summarizers and generators as Python classes."""

import pytest
import torch

from fastseq.data import DataError, Tokenizer, read_tsv
from fastseq.generation import generate
from fastseq.models import CheckpointError, Seq2Seq, Transformer
from fastseq.use import Summarizer, TextError, TextGenerator, Translator


@pytest.fixture(scope="module")
def translator(translation) -> Translator:
    return Translator.open(translation.folder)


def test_texts_come_back_in_order_whatever_the_batches(translation, translator):
    sources = [row.fields[0] for row in read_tsv(translation.train, [1, 2])][:7]
    texts = [sources[0], "", *sources[1:], "   "]
    one_by_one = [translator([text], beam_size=2)[0] for text in texts]
    assert translator(texts, beam_size=2, batch_size=3) == one_by_one
    assert one_by_one[1] == one_by_one[-1] == ""
    assert len(set(one_by_one)) > 3
    assert translator([]) == []


def test_of_a_run_the_best_is_opened_or_the_last(tmp_path, transformer, recurrent):
    (tmp_path / "last").symlink_to(recurrent.folder / "last")
    assert isinstance(Translator.open(tmp_path).model, Seq2Seq)
    (tmp_path / "best").symlink_to(transformer.folder / "best")
    assert isinstance(Translator.open(tmp_path).model, Transformer)
    assert isinstance(Translator.open(tmp_path / "last").model, Seq2Seq)


def test_candidates_are_what_generate_finds(translator):
    text, tokenizer = "the dog sees my friend", translator.tokenizer
    (found,) = translator.candidates([text], num_return=3, beam_size=5, length_penalty=0.5)
    ((best, *others),) = generate(
        translator.model,
        torch.tensor([tokenizer.encode_source(text)]),
        max_new_tokens=25,
        beam_size=5,
        num_return=3,
        length_penalty=0.5,
    )
    assert [c.text for c in found] == [tokenizer.decode(h.tokens) for h in (best, *others)]
    assert found[0].score == pytest.approx(best.score, abs=1e-5)
    assert found[0].tokens == len(best.tokens)
    assert found[0].score >= found[1].score >= found[2].score


def test_sampling_follows_its_generator(translator):
    texts = ["the cat hears a bird today"] * 4

    def drawn(seed: int) -> list[str]:
        rng = torch.Generator().manual_seed(seed)
        return translator(texts, sample=True, temperature=2.0, generator=rng)

    assert drawn(1) == drawn(1) != drawn(2)
    with pytest.raises(ValueError, match="top_k needs sample=True"):
        translator(texts, top_k=3)
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got 2"):
        translator(texts, sample=True, top_p=2.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        translator(texts, batch_size=0)


def test_texts_that_cannot_be_read_are_named(translation, translator):
    with pytest.raises(TypeError, match="texts should be a list of str, got 'the cat'"):
        translator("the cat")
    with pytest.raises(TextError, match=r"texts\[1\]: not Unicode: surrogates") as caught:
        translator(["the cat", "the \udc80"])
    assert caught.value.index == 1
    long = "the cat sees " * 30
    if translator.max_length is None:
        assert translator([long], max_new_tokens=3)[0]
        return
    with pytest.raises(TextError, match=r"texts\[1\]: \d+ tokens, the model reads at most 40"):
        translator(["the cat", long])
    (cut,) = translator([long], truncate=True)
    ids = translator.tokenizer.encode_source(long)
    ((best,),) = generate(
        translator.model, torch.tensor([[*ids[:39], ids[-1]]]), max_new_tokens=39, beam_size=4
    )
    assert cut == translator.tokenizer.decode(best.tokens)


def test_weights_are_rounded_where_that_can_be(translation):
    exact = Translator.open(translation.folder)
    if exact.max_length is None:  # recurrent
        with pytest.raises(ValueError, match="weights int8 cannot be had: model must be a Transf"):
            Translator.open(translation.folder, weights="int8")
        return
    text = ["the dog follows the cat today"]
    for weights, apart in (("bfloat16", 0.3), ("int8", 0.5)):
        rounded = Translator.open(translation.folder, weights=weights)
        ((a,),), ((b,),) = exact.candidates(text), rounded.candidates(text)
        assert a.score != b.score
        assert a.score == pytest.approx(b.score, abs=apart)
    with pytest.raises(ValueError, match="weights should be one of float32, bfloat16, int8, got"):
        Translator.open(translation.folder, weights="int4")


def test_summaries_are_not_longer_than_the_text(translation):
    summarizer = Summarizer.open(translation.folder)
    text = "the cat sees a bird today at night"
    most = len(summarizer.tokenizer.encode_source(text))
    found = summarizer.candidates([text] * 8, sample=True, temperature=20.0)
    assert max(f[0].tokens for f in found) <= most < 2 * most + 10


def test_a_generator_goes_on_from_what_is_given(language):
    generator = TextGenerator.open(language.folder)
    prompts = ["the cat sees", "my friend", ""]
    rng = torch.Generator().manual_seed(0)
    texts = generator(prompts, generator=rng, max_new_tokens=8)
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts))
    assert texts[2]
    tokenizer = generator.tokenizer
    greedy = generator.candidates(prompts, sample=False, max_new_tokens=6)
    for prompt, (found,) in zip(prompts, greedy):
        ids = tokenizer.encode(prompt)
        ((best,),) = generate(generator.model, prefix=[ids], max_new_tokens=6)
        assert found.text == tokenizer.decode(best.tokens)
        assert found.tokens == len(best.tokens) - len(ids) <= 6
    drawn = generator.candidates(["the"], num_return=3, top_k=1, sample=True)[0]
    assert len({c.text for c in drawn}) == 1


def test_a_generators_length_is_that_of_its_model(language):
    generator = TextGenerator.open(language.folder)
    long = "the cat " * 20
    with pytest.raises(TextError, match=r"\d+ tokens, the model reads at most 32; truncate cuts"):
        generator([long])
    ((found,),) = generator.candidates([long], truncate=True)
    assert found.tokens <= 1
    with pytest.raises(ValueError, match=r"max_new_tokens=33 come to 34 tokens; .* is 32"):
        generator(["the"], max_new_tokens=33)


def test_a_model_of_another_task_or_with_another_tokenizer_is_refused(
    translation, language, tmp_path
):
    with pytest.raises(CheckpointError, match="Translator needs a Seq2Seq or Transformer, got a G"):
        Translator.open(language.folder)
    with pytest.raises(CheckpointError, match="TextGenerator needs a GPT, got a"):
        TextGenerator.open(translation.folder)
    larger = Tokenizer.train(["some other text"], 300)
    while len(larger) <= Tokenizer.load(language.folder / "last").inner.get_vocab_size():
        larger.inner.add_tokens([f"more{len(larger)}"])
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((language.folder / "last" / name).read_bytes())
    with pytest.raises(DataError, match=r"tokenizer.json: no such file"):
        TextGenerator.open(tmp_path)
    larger.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the model \d+"):
        TextGenerator.open(tmp_path)
