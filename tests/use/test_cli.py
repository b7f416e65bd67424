"""Trained models at the command line."""

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastseq.cli import app
from fastseq.data import read_squad
from fastseq.use import Classifier, QuestionAnswerer, Translator, plot_scores

runner = CliRunner()


def call(*arguments: object):
    return runner.invoke(app, [*map(str, arguments), "--device", "cpu"])


def test_arguments_files_and_output(translation, tmp_path):
    texts = ["the cat sees a bird", "", "my friend hears the dog today"]
    expected = Translator.open(translation.folder)(texts)
    done = call("translate", "--model", translation.folder, *texts)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == expected
    assert " tokens/s" in done.stderr
    assert "3 texts" in done.stderr
    path, out = tmp_path / "in.txt", tmp_path / "out.txt.xz"
    path.write_text("\n".join(texts))
    many = ["translate", "--model", translation.folder / "last", "--file", path]
    done = call(*many, "--file", path, "--output", out, "--batch-size", 1)
    assert (done.exit_code, done.stdout) == (0, "")
    assert lzma.decompress(out.read_bytes()).decode().splitlines() == expected * 2


def test_standard_input_and_the_best_of_many(transformer):
    command = [sys.executable, "-m", "fastseq.cli", "translate", "--model", transformer.folder]
    options = ["--n-best", "2", "--beam", "3", "--device", "cpu"]
    done = subprocess.run(
        [*map(str, command), *options], input="a bird\n\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ((first, second),) = Translator.open(transformer.folder).candidates(
        ["a bird"], beam_size=3, num_return=2
    )
    assert done.stdout.splitlines() == [
        f"1\t{first.score:.4f}\t{first.text}",
        f"1\t{second.score:.4f}\t{second.text}",
        "2\t0.0000\t",
        "2\t0.0000\t",
    ]


def test_an_error_names_its_line_and_leaves_the_output_file(transformer, tmp_path):
    path, out = tmp_path / "in.txt", tmp_path / "out.txt"
    out.write_text("before")
    start = "translate", "--model", transformer.folder, "--file", path, "--output", out
    path.write_bytes(b"the cat\n" * 9 + b"the \xe9\n")
    done = call(*start)
    assert done.exit_code == 1
    assert f"fastseq: {path}:10: not UTF-8: byte 0xe9" in done.stderr
    path.write_text(f"the cat\n{'the cat ' * 60}\n" + "a bird\n" * 20)
    done = call(*start, "--batch-size", 1)
    assert done.exit_code == 1
    assert f"fastseq: {path}:2: " in done.stderr
    assert "tokens, the model reads at most 40; truncate cuts" in done.stderr
    assert out.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.txt", "out.txt"]
    done = call(*start, "--truncate")
    assert done.exit_code == 0
    assert len(out.read_text().splitlines()) == 22


def test_a_full_disk_is_told(transformer):
    command = [sys.executable, "-m", "fastseq.cli", "translate", "--model", transformer.folder]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*map(str, command), "a bird", "--device", "cpu"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["fastseq: [Errno 28] No space left on device"]


def test_generated_texts_are_drawn_by_the_seed(language):
    arguments = ["generate", "--model", language.folder, "the cat", "a bird", "--max-new-tokens", 9]
    one, same, other = (call(*arguments, "--seed", seed) for seed in (1, 1, 2))
    assert one.exit_code == 0, one.output
    assert one.stdout == same.stdout != other.stdout
    first, second = one.stdout.split("\n\n")
    assert first.startswith("the cat")
    assert second.startswith("a bird")
    exact = call(*arguments, "--no-sample").stdout
    rounded = call(*arguments, "--no-sample", "--weights", "int8")
    assert rounded.exit_code == 0
    assert exact.startswith("the cat")
    summary = call("summarize", "--model", language.folder, "x")
    assert "Summarizer needs a Seq2Seq or Transformer, got a GPT" in summary.stderr


def test_classes_and_their_probabilities(classes):
    done = call("classify", "--model", classes.folder, "Film 3 was awful.", "", "Фильм 日")
    assert done.exit_code == 0, done.output
    first, empty, _ = done.stdout.split("\n")[:3]
    found = Classifier.open(classes.folder)(["Film 3 was awful."])[0]
    assert first == f"negative\t{found.probability:.4f}"
    assert empty == ""
    assert "1 text with characters that the tokenizer does not know, the first at <arg" in (
        done.stderr
    )
    assert "<argument>:3" in done.stderr


def test_answers_from_a_text_or_from_each_lines_own(questions, tmp_path):
    asked = read_squad(questions.valid)[0]
    found = QuestionAnswerer.open(questions.folder)([asked.question], [asked.context])[0]
    line = f"{found.text}\t{found.score:.4f}\n"
    start = "answer", "--model", questions.folder
    assert call(*start, asked.question, "--context", asked.context).stdout == line
    (tmp_path / "context.txt").write_text(asked.context)
    given = call(*start, asked.question, "--context-file", tmp_path / "context.txt")
    assert given.stdout == line
    (tmp_path / "asked.tsv").write_text(f"\n{asked.question}\t{asked.context}\nWhat?\n")
    done = call(*start, "--file", tmp_path / "asked.tsv")
    assert done.exit_code == 1
    assert "asked.tsv:3: no tab and text after the question" in done.stderr
    (tmp_path / "asked.tsv").write_text(f"\n{asked.question}\t{asked.context}\n")
    assert call(*start, "--file", tmp_path / "asked.tsv").stdout == f"\n{line}"


def test_scores_are_printed_and_written(translation, tmp_path):
    out = tmp_path / "scores.json"
    done = call(
        *("evaluate", "--model", translation.folder, "--data", translation.valid),
        *("--output", out, "--bucket", 5, "--bucket", 9),
    )
    assert done.exit_code == 0, done.output
    scores = json.loads(out.read_text())
    assert f"bleu {scores['bleu']:,.6g}" in done.stdout
    assert [part["to"] for part in scores["by_length"]] == [5, 9, None]
    assert "1–5" in done.stdout


def test_classes_are_scored(classes):
    start = "evaluate", "--model", classes.folder, "--data", classes.valid
    done = call(*start, "--threshold", 0)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"count 40  accuracy {classes.scores['accuracy']:,.6g}  f1 ")
    assert "is none of the model's: negative, positive" in call(*start).stderr


def test_attention_is_drawn(translation, tmp_path):
    pytest.importorskip("matplotlib")
    start = "plot-attention", "--model", translation.folder, "the cat sees a bird", "--out"
    done = call(*start, tmp_path / "picture.png")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == Translator.open(translation.folder)(["the cat sees a bird"])[0]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    done = call(*start, tmp_path / "picture.poem")
    assert done.exit_code == 1
    assert "poem" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_scores_are_drawn(translation, tmp_path):
    pytest.importorskip("matplotlib")
    out, scores = tmp_path / "picture.png", tmp_path / "scores.json"
    parts = [{"from": 1, "to": 5, "bleu": 7.0}, {"from": 6, "to": None, "bleu": 5.0}]
    scores.write_text(json.dumps({"bleu": 6.0, "by_length": parts}))
    for source in (translation.folder, scores):
        done = runner.invoke(app, ["plot-scores", str(source), str(source), "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert out.read_bytes().startswith(b"\x89PNG")
        out.unlink()
    (axes,) = plot_scores([scores]).axes
    assert axes.lines[0].get_ydata().tolist() == [7, 5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1–5", "6–"]
    for arguments, message in (
        ([translation.folder, scores], "but not both"),
        ([scores, "--score", "chrf"], "scores.json: no 'chrf'; there is: bleu, from, to"),
        ([translation.folder / "log.jsonl"], "no scores by length"),
        ([tmp_path], "log.jsonl"),
    ):
        done = runner.invoke(app, ["plot-scores", *map(str, arguments), "--out", str(out)])
        assert done.exit_code == 1
        assert message in done.stderr and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "absent", "x"], "absent/config.json: there is no such file"),
        (["--model", "{}", "x", "--top-k", 3], "top_k needs sample=True"),
        (["--model", "{}", "x", "--weights", "int4"], "weights should be one of float32, bfloat"),
        (["--model", "{}", "--file", "absent.txt"], "absent.txt: No such file"),
        (["--model", "{}", "x", "--output", "absent/out"], "absent"),
        (["--model", "{}", "x", "--n-best", 5, "--beam", 2], "num_return must be at most"),
    ],
)
def test_mistakes_end_with_their_message(translation, arguments, message):
    done = call("translate", *(str(a).format(translation.folder) for a in arguments))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("fastseq: ")
    assert message in done.stderr


def test_a_damaged_model_is_told(translation, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((translation.folder / "best" / name).read_bytes())
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        path = Path(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-100])
        done = call("translate", "--model", tmp_path, "x")
        assert done.exit_code == 1
        assert f"fastseq: {path}" in done.stderr
