"""The recurrent suite on tiny cases: it runs, refuses wrong results, and reports what happened."""

import json

import numpy as np
import pytest
import torch

import fastseq
from fastseq.benchmarks import g2p
from fastseq.benchmarks.cases_rnn import Case, cpu_suite, cuda_suite
from fastseq.benchmarks.harness import Budget
from fastseq.benchmarks.rnn import SUITE
from fastseq.benchmarks.suite import select, succeeded, summarize

CPU = torch.device("cpu")
SHORT = Budget(seconds=0.0, least=1, most=2)

TINY = [
    Case("tiny", "LSTM", 3, 5, 4, train=True),
    Case("tiny", "GRU", 2, 6, 3, bidirectional=True, layers=2),
    Case("tiny", "RNN", 2, 6, 3, input_size=4),
    Case("tiny", "LSTM", 4, 8, 3, proj_size=3, train=True),
    Case("tiny", "GRU", 4, 6, 7, train=True, lengths="random"),
    Case("tiny", "LSTM", 4, 6, 7, lengths="real"),
    Case("tiny", "LSTM", 2, 8, 3, train=True, recompute=True),
    Case("tiny", "GRU", 2, 8, 3, dtype=torch.bfloat16),
    Case("tiny", "LSTM", 3, 5, 4, train=True, layer_norm=True),
    Case("tiny", "GRU", 3, 5, 4, layer_norm=True),
    Case("tiny", "LSTM", 3, 5, 4, train=True, zoneout=0.3),
    Case("tiny", "GRU", 3, 5, 4, zoneout=0.3),
    Case("tiny", "GRU", 3, 5, 4, train=True, zoneout=0.3, recurrent_dropout=0.5),
    Case("tiny", "LSTM", 2, 7, kind="cell", train=True),
    Case("tiny", "GRU", 2, 7, kind="cell"),
]


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_case_is_measured(case):
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == "ok", entry
    assert entry["served_by"] == "fastseq"
    assert entry["speedup"] > 0
    assert set(entry["milliseconds"]) == {"fastseq", case.baseline}
    assert entry["floor_percent"] > 0
    assert entry["peak_bytes"][case.baseline] > 0


def test_wrong_implementation_gets_no_speed(monkeypatch):
    right = fastseq.GRU.forward

    def wrong(self, *args, **kwargs):
        output, h_n = right(self, *args, **kwargs)
        return output * 1.001, h_n

    monkeypatch.setattr(fastseq.GRU, "forward", wrong)
    entry = SUITE.measure(Case("tiny", "GRU", 2, 6, 3), CPU, SHORT)
    assert entry["status"] == "failed parity"
    assert "speedup" not in entry
    assert "milliseconds" not in entry
    assert entry["parity"]["ours"] > entry["parity"]["limit"]


def test_wrong_gradient_gets_no_speed(monkeypatch):
    right = fastseq.LSTM.forward

    def wrong(self, x, hx=None):
        output, state = right(self, x, hx)
        return output + (x - x.detach()).sum(), state  # same values, another gradient

    monkeypatch.setattr(fastseq.LSTM, "forward", wrong)
    entry = SUITE.measure(Case("tiny", "LSTM", 2, 6, 3, train=True), CPU, SHORT)
    assert entry["status"] == "failed parity"
    assert "grad input" in entry["parity"]["result"]


def test_torch_against_itself_is_told_and_not_counted(monkeypatch, tmp_path):
    monkeypatch.setattr(fastseq.GRU, "forward", torch.nn.GRU.forward)
    record = SUITE.run(tmp_path, CPU, cases=[TINY[1], TINY[0]], budget=SHORT)
    handed, ours = record["results"]
    assert handed["served_by"] == "torch"
    assert record["summary"]["served_by_torch"] == 1
    assert record["summary"]["geometric_mean"] == pytest.approx(ours["speedup"])
    assert "(served by torch)" in (tmp_path / "rnn.md").read_text()


def test_run_writes_json_report_and_pictures(tmp_path, monkeypatch, capsys):
    right = fastseq.RNN.forward

    def broken(self, *args, **kwargs):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(fastseq.RNN, "forward", broken)
    record = SUITE.run(tmp_path / "out", CPU, cases=[TINY[2], TINY[0], TINY[14]], budget=SHORT)
    assert right is not broken
    found = json.loads((tmp_path / "out" / "rnn.json").read_text())
    assert [e["status"] for e in found["results"]] == ["error", "ok", "ok"]
    assert "broken on purpose" in found["results"][0]["reason"]
    assert found["summary"]["ok"] == 2
    assert found["summary"]["geometric_mean"] == pytest.approx(record["summary"]["geometric_mean"])
    assert found["machine"]["torch"] == torch.__version__
    assert TINY[0].name in (tmp_path / "out" / "rnn.md").read_text()
    assert "geometric mean" in (tmp_path / "out" / "REPORT.md").read_text()
    assert TINY[2].name in capsys.readouterr().out
    assert not succeeded(record)
    for picture in ("rnn-overview.png", "rnn.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "rnn.json",
        "rnn.md",
        "REPORT.md",
        "rnn-overview.png",
        "rnn.png",
    }


def test_summary_tells_plain_cases_from_flattering_ones():
    def entry(case, speedup, **other):
        return {
            "status": "ok", "served_by": "fastseq", "group": "g", "case": case, "speedup": speedup,
            "noisy": False, "baseline": "torch", "dtype": "float32",
            "peak_bytes": {"fastseq": 2, "torch": 1},
        } | other  # fmt: skip

    entries = [
        entry("a", 2.0),
        entry("b", 0.5),
        entry("c", 100.0, dtype="bfloat16"),
        entry("d", 100.0, baseline="loop"),
    ]
    summary = summarize(entries)
    assert summary["geometric_mean"] == pytest.approx(10.0)
    assert summary["geometric_mean_of_torch_float32"] == pytest.approx(1.0)
    assert summary["slower_than_0.95"] == ["b"]


def test_suite_stops_at_its_time_limit(tmp_path):
    record = SUITE.run(tmp_path, CPU, cases=TINY[:2], budget=SHORT, limit_seconds=-1)
    assert [e["status"] for e in record["results"]] == ["skipped"] * 2


def test_suites_are_sound():
    for cases in (list(cpu_suite()), list(cuda_suite())):
        names = [(c.group, c.name) for c in cases]
        assert len(set(names)) == len(names)
    telling = [case.telling for case in cuda_suite()]
    assert telling[:20] == [True] * 20 and not any(telling[20:])
    cases = SUITE.cases(CPU)
    assert 5 <= len(select(cases, True, "")) < len(cases) / 3
    assert {c.mode for c in select(cases, False, "gru TRAIN")} == {"GRU"}


def spell_in_numpy(arrays, word):
    """The package's own forward of one word."""

    def cell(x, h, part):
        a = arrays[f"{part}_w_ih"] @ x + arrays[f"{part}_b_ih"]
        b = arrays[f"{part}_w_hh"] @ h + arrays[f"{part}_b_hh"]
        (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
        r, z = 1 / (1 + np.exp(-ar - br)), 1 / (1 + np.exp(-az - bz))
        return (1 - z) * np.tanh(an + r * bn) + z * h

    h = np.zeros(arrays["enc_w_hh"].shape[1], np.float32)
    for letter in g2p.encode([word])[0][0].tolist():
        h = cell(arrays["enc_emb"][letter], h, "enc")
    spoken, index = [], g2p.START
    while len(spoken) < g2p.LONGEST:
        h = cell(arrays["dec_emb"][index], h, "dec")
        index = int((arrays["fc_w"] @ h + arrays["fc_b"]).argmax())
        if index == g2p.END:
            break
        spoken.append(g2p.PHONEMES[index])
    return " ".join(spoken)


def test_trained_model_spells_real_words():
    path = g2p.checkpoint()
    if path is None:
        pytest.skip("g2p_en is not installed")
    words = g2p.words()[::37]
    model = g2p.G2P.from_checkpoint(path)
    assert len(fastseq.patch(model).swapped) == 2
    with torch.no_grad():
        phonemes, _ = model(*g2p.encode(words))
    arrays = dict(np.load(path))
    assert g2p.decode(phonemes) == [spell_in_numpy(arrays, word) for word in words]
    assert g2p.decode(model(*g2p.encode(["packaging"]))[0]) == ["P AE1 K IH0 JH IH0 NG"]


def test_real_model_is_measured_or_skipped(monkeypatch):
    case = Case("m", "GRU", 256, 256, kind="model")
    entry = SUITE.measure(case, CPU, SHORT)
    assert entry["status"] == ("ok" if g2p.checkpoint() else "skipped"), entry
    monkeypatch.setattr(g2p, "checkpoint", lambda: None)
    assert SUITE.measure(case, CPU, SHORT)["status"] == "skipped"
