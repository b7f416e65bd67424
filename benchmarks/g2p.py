"""A real trained model on real words: the grapheme-to-phoneme network of ``g2p_en`` (Apache-2.0).

A GRU reads the letters of a word, a second GRU spells its phonemes; the package ships the
weights as arrays and runs them in NumPy. Here the same network is an ordinary torch module of
``nn.GRU`` and ``nn.GRUCell``, which ``fastseq.patch`` then speeds up without knowing it.
"""

import copy
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastseq

from .suite import Results, Workload

# fmt: off
PHONEMES = [
    "<pad>", "<unk>", "<s>", "</s>", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2",
    "AO0", "AO1", "AO2", "AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0",
    "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2", "F", "G", "HH", "IH0", "IH1", "IH2",
    "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2", "OY0", "OY1", "OY2",
    "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2", "V", "W", "Y",
    "Z", "ZH",
]
# fmt: on
START, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")
LONGEST = 20  # phonemes a word, as in the package


def checkpoint() -> Path | None:
    """Where the installed package keeps its weights; the package itself is not imported."""
    spec = importlib.util.find_spec("g2p_en")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "checkpoint20.npz"
    return path if path.exists() else None


def words() -> list[str]:
    return (Path(__file__).parent / "data" / "words.txt").read_text().split()


class G2P(nn.Module):
    """Letters (padded indices and lengths) to phoneme indices, greedily."""

    def __init__(self, letters: int = 29, hidden: int = 256) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, hidden)
        self.encoder = nn.GRU(hidden, hidden, batch_first=True)
        self.phonemes = nn.Embedding(len(PHONEMES), hidden)
        self.decoder = nn.GRUCell(hidden, hidden)
        self.output = nn.Linear(hidden, len(PHONEMES))

    @classmethod
    def from_checkpoint(cls, path: Path) -> "G2P":
        import numpy as np

        arrays = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
        model = cls(*arrays["enc_emb"].shape)
        names = {
            "letters.weight": "enc_emb",
            "phonemes.weight": "dec_emb",
            "output.weight": "fc_w",
            "output.bias": "fc_b",
        }
        for ours, theirs in (
            ("weight_ih", "w_ih"),
            ("weight_hh", "w_hh"),
            ("bias_ih", "b_ih"),
            ("bias_hh", "b_hh"),
        ):
            names[f"encoder.{ours}_l0"] = f"enc_{theirs}"
            names[f"decoder.{ours}"] = f"dec_{theirs}"
        model.load_state_dict({ours: arrays[theirs] for ours, theirs in names.items()})
        return model.eval()

    def forward(self, letters: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """letters (B, L), lengths (B,) -> phonemes (B, LONGEST), logits (B, LONGEST, phonemes)."""
        packed = pack_padded_sequence(
            self.letters(letters), lengths, batch_first=True, enforce_sorted=False
        )
        h = self.encoder(packed)[1][0]
        spoken = torch.full((len(lengths),), START, device=letters.device)
        ended = torch.zeros_like(spoken, dtype=torch.bool)
        phonemes, logits = [], []
        for _ in range(LONGEST):
            h = self.decoder(self.phonemes(spoken), h)
            scores = self.output(h)
            spoken = scores.argmax(1)
            ended = ended | (spoken == END)
            logits.append(scores)
            phonemes.append(spoken.masked_fill(ended, END))
        return torch.stack(phonemes, 1), torch.stack(logits, 1)


def encode(spelled: list[str]) -> tuple[Tensor, Tensor]:
    """Indices of letters with the end mark, padded, and their numbers."""
    rows = [torch.tensor([3 + ord(letter) - ord("a") for letter in word] + [2]) for word in spelled]
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def decode(phonemes: Tensor) -> list[str]:
    spoken = []
    for row in phonemes.tolist():
        row = row[: row.index(END)] if END in row else row
        spoken.append(" ".join(PHONEMES[index] for index in row))
    return spoken


def build(path: Path, batch: int, device: torch.device) -> Workload:
    """The network as it is against the network after ``fastseq.patch``, on batches of words."""
    theirs = G2P.from_checkpoint(path).to(device)
    ours = copy.deepcopy(theirs)
    report = fastseq.patch(ours)
    exact = copy.deepcopy(theirs).double()
    spelled = words()
    batches = [encode(spelled[i : i + batch]) for i in range(0, len(spelled), batch)]
    batches = [(letters.to(device), lengths) for letters, lengths in batches]

    def run(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            return [model(*each) for each in batches]

    def gather(model: nn.Module) -> Results:
        found = run(model)
        return {
            "phonemes": torch.cat([phonemes for phonemes, _ in found]).double(),
            "logits": torch.cat([logits for _, logits in found]),
        }

    letters = int(sum(lengths.sum() for _, lengths in batches))
    hidden = theirs.decoder.hidden_size
    steps = letters + LONGEST * len(spelled)
    sample = decode(run(ours)[0][0][:4])
    return Workload(
        {"fastseq": lambda: run(ours), "torch": lambda: run(theirs)},
        lambda: (gather(ours), gather(theirs), gather(exact)),
        flops=2.0 * steps * 3 * hidden * 2 * hidden,
        bytes=4.0 * (2 * 3 * hidden * 2 * hidden + steps * 2 * hidden),
        gemms=[(steps, 2 * hidden, 3 * hidden)],
        facts={
            "model": "g2p_en, grapheme to phoneme",
            "words": len(spelled),
            "patched": str(report),
            "sample": dict(zip(spelled, sample)),
        },
    )
