"""Every task learns, from its own kind of data, and says what it cannot read."""

import json
import math
import random

import pytest
import torch

from fastseq.data import DataError, Tokenizer
from fastseq.models import load
from fastseq.training import ConfigError, DivergedError, load_settings
from fastseq.training.tasks import TASKS
from tests.training.runs import ENCODER, RECURRENT, SMALL, TRANSFORMER, log, run


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def fall(out, name: str = "loss") -> float:
    losses = [entry[name] for entry in log(out)]
    return mean(losses[:5]) - mean(losses[-5:])


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("transformer", {**TRANSFORMER, "train.precision": "bf16"}),
        ("rnn", RECURRENT),
        ("gru", {**RECURRENT, "train.teacher_forcing": 0.7}),
        ("lstm-attention", RECURRENT),
        ("gru-attention", {**RECURRENT, "model.attention": "general"}),
    ],
)
def test_translation_learns(tmp_path, pairs, arch, flags):
    scores, _ = run(
        "translate", tmp_path, pairs, flags, {"arch": arch}, steps=60, lr=5e-3, samples=6
    )
    assert fall(tmp_path) > 0.6
    assert scores["loss"] < math.log(400) - 0.8
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]), rel=1e-4)
    assert set(scores) == {"loss", "perplexity", "bleu", "chrf"}
    assert len(log(tmp_path, "valid")[-1]["samples"]) == 3
    assert type(load(tmp_path / "best")) is type(load(tmp_path / "last"))


def test_summaries_are_scored_by_rouge(tmp_path, pairs):
    scores, _ = run("summarize", tmp_path, pairs, TRANSFORMER, steps=2, samples=4)
    assert set(scores) == {"loss", "perplexity", "rouge_l", "chrf"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Documents of a few sentences: who is in the first one is in the second one."""
    path, rng = tmp_path_factory.mktemp("text") / "text.txt", random.Random(0)
    names = ["Anna", "Boris", "Carla", "Dimitri", "Edith", "Farid", "Greta", "Hakim"]

    def document():
        name, place = rng.choice(names), rng.choice(["Paris", "Rome", "Oslo", "Lima"])
        return f"{name} lives in {place}.\nIn {place} the sun shines on {name}."

    path.write_text("\n\n".join(document() for _ in range(600)))
    return {"data.train": [str(path)], "data.valid_fraction": 0.2, "data.max_length": 48}


def test_a_language_model_learns(tmp_path, text):
    scores, _ = run("lm", tmp_path, text, ENCODER, steps=60, lr=1e-2)
    assert fall(tmp_path) > 2
    assert scores["perplexity"] < 10


def test_texts_come_from_files_and_columns(tmp_path, text):
    table = tmp_path / "table.tsv"
    table.write_text("".join(f"{i}\tRow {i} is here.\t{i * i}\n" for i in range(30)))
    files = [*text["data.train"], f"{table}:2"]
    task = TASKS["lm"](load_settings("lm", None, {"data.train": files, "out": "x"}))
    texts = list(task.texts())
    assert len(texts) == 2 * 600 + 30
    assert texts[-1] == "Row 29 is here."


def test_pretraining_learns_and_fine_tuning_goes_on_from_it(tmp_path, text):
    scores, _ = run("mlm", tmp_path / "bert", text, ENCODER, steps=60, lr=1e-2)
    assert fall(tmp_path / "bert", "masked_words") > 1.5
    assert scores["word_accuracy"] > 35
    assert 30 < scores["next_accuracy"] <= 100

    data = tmp_path / "labels.tsv"
    rng, lines = random.Random(1), []
    for i in range(400):
        name = rng.choice(["Anna", "Boris"])
        lines.append(f"{-1.5 if name == 'Anna' else 0.5}\t{name} lives in house {i}.\n")
    data.write_text("".join(lines))
    flags = {"data.train": [str(data)], "data.threshold": 0.0, "data.max_length": 48}
    flags |= {"init_encoder": str(tmp_path / "bert" / "best"), "model.dropout": 0.0}
    scores, _ = run("classify", tmp_path / "class", flags, steps=80, lr=3e-3)
    assert scores["accuracy"] > 95
    assert scores["f1"] > 95
    assert json.loads((tmp_path / "class" / "best" / "labels.json").read_text()) == [
        "negative",
        "positive",
    ]
    before, after = load(tmp_path / "bert" / "best"), load(tmp_path / "class" / "best")
    assert before.bert.encoder.layers[0].attention.qkv.weight.shape == (96, 32)
    assert after.config.num_labels == 2
    with pytest.raises(ConfigError, match=r"data.max_length should be at most 48"):
        run("classify", tmp_path / "long", {**flags, "data.max_length": 64}, steps=1)

    # The same encoder in an encoder-decoder.
    lines = [line.split("\t")[1].strip() for line in lines]
    data.write_text("".join(f"{line}\tIt is {line.split()[0]}.\n" for line in lines))
    flags = {**SMALL, "data.train": [str(data)], "data.max_length": 48, "model.decoder_layers": 1}
    flags |= {"init_encoder": str(tmp_path / "bert" / "best"), "model.dropout": 0.0}
    task = TASKS["summarize"](load_settings("summarize", None, flags))
    task.load(Tokenizer.load(tmp_path / "bert" / "best"))
    start = task.build().encoder.state_dict()
    assert all(torch.equal(x, start[name]) for name, x in before.bert.encoder.state_dict().items())
    scores, _ = run("summarize", tmp_path / "say", flags, steps=40, lr=3e-3, samples=8)
    assert fall(tmp_path / "say") > 1
    assert scores["rouge_l"] > 60


def test_question_answering_learns(tmp_path):
    rng, paragraphs = random.Random(0), []
    for i in range(120):
        number = rng.randrange(10, 99)
        context = f"House {i} is old. It has {number} rooms and a garden."
        answer = {"text": str(number), "answer_start": context.index(f"{number} rooms")}
        entry = {"id": str(i), "question": "How many rooms are there?", "answers": [answer]}
        paragraphs.append({"context": context, "qas": [entry]})
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    flags = {"data.train": [str(path)], "data.valid_fraction": 0.2}
    scores, _ = run("qa", tmp_path / "run", flags, ENCODER, steps=100, lr=5e-3, warmup=30)
    assert fall(tmp_path / "run") > 1
    assert scores["f1"] >= scores["exact_match"] > 50


def test_what_is_too_long_is_left_out_and_said(tmp_path, pairs):
    flags = {**TRANSFORMER, **pairs, "data.max_length": 24}
    _, screen = run("translate", tmp_path, flags, steps=1)
    assert "train examples are over data.max_length = 24 tokens and left out" in screen
    with pytest.raises(DataError, match=r"train.tsv: no train example is within"):
        run("translate", tmp_path / "none", {**flags, "data.max_length": 1}, steps=1)


def test_nothing_held_out_says_what_to_do(tmp_path):
    file = tmp_path / "labels.tsv"
    file.write_text("".join(f"{i % 2}\ttext {i}\n" for i in range(9)))
    flags = {"data.train": [str(file)], "data.valid_fraction": 1e-9}
    with pytest.raises(DataError, match=r"no example is held out .*valid_fraction = 1e-09; raise"):
        run("classify", tmp_path / "run", flags, steps=1)


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("translate", {"arch": "gpt"}, "arch should be one of rnn, lstm, gru"),
        ("translate", {"model.hiden_size": 3}, r"\[model\]: .*no field hiden_size|hiden_size"),
        ("translate", {"model.hidden_size": "x"}, r"\[model\]: hidden_size should be"),
        ("translate", {"arch": "lstm", "model.attention": "dot"}, "model.attention follows from"),
        ("translate", {"arch": "lstm", "init_encoder": "x"}, "init_encoder x|x: no such file"),
        ("translate", {"data.columns": [1]}, r"data.columns should be two, got \[1\]"),
        ("lm", {}, "lm needs data.train"),
    ],
)
def test_mistakes_are_told_before_training(tmp_path, pairs, task, flags, message):
    data = pairs if task == "translate" else {}
    with pytest.raises((ConfigError, DataError), match=message):
        run(task, tmp_path, {**data, **flags}, steps=1)


def test_labels_are_checked(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("1.5\tgood\n-1\tbad\nwell\tso\n")
    flags = {"data.train": [str(path)], "data.valid": [str(path)], "data.threshold": 0.0}
    with pytest.raises(DataError, match=r"labels.tsv:3: data.threshold needs numeric labels"):
        run("classify", tmp_path / "run", flags, steps=1)
    other = tmp_path / "other.tsv"
    other.write_text("7\tworse\n")
    flags = {"data.train": [str(path)], "data.valid": [str(other)]}
    with pytest.raises(DataError, match=r"other.tsv:1: label '7' is not in training; known: -1"):
        run("classify", tmp_path / "run", flags, steps=1)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, pairs):
    with pytest.raises(DivergedError, match=r"lower train.lr .*no checkpoint is whole"):
        run("translate", tmp_path, pairs, RECURRENT, {"arch": "rnn"}, steps=50, lr=1e30, clip=0.0)


def test_the_losses_of_a_batch_do_not_depend_on_padding(pairs):
    settings = load_settings("translate", None, {**pairs, **TRANSFORMER, "out": "x"})
    task = TASKS["translate"](settings)
    task.load(Tokenizer.train(task.texts(), 400))
    model = task.build().eval()
    indices = list(range(7))
    batch = task.train.collate(indices, None)
    whole = task.losses(model(**batch.inputs), batch)
    assert int(task.counts(batch)) == int(batch.inputs["target_lengths"].sum())
    single = [task.train.collate([i], None) for i in indices]
    parts = sum(task.losses(model(**b.inputs), b) for b in single)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=0)
