"""Words into numbers and back: byte-level BPE, or WordPiece, learned from text."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from .._replacing import replacing
from .files import DataError

Kind = Literal["bpe", "wordpiece"]

# A token's part in a sequence and the names it goes by, ours of each kind first, then others'.
_SPECIAL = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]", "<|endoftext|>"),
    "bos": ("<s>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "[SEP]", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
}


def _library():
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "tokenizers is not installed: pip install tokenizers", name="tokenizers"
        ) from None
    return tokenizers


class Tokenizer:
    """A vocabulary and the rules that cut text into it, kept as ``tokenizer.json``.

    Those that ``train`` makes have the special tokens 0 to 4: padding, unknown, begin (BERT's
    ``[CLS]``), end (``[SEP]``) and mask. ``encode`` adds none of them, and reads their names in a
    text as text. ``encode_source`` adds what the file's template says: the end for BPE, [CLS] and
    [SEP] for WordPiece. Files of Hugging Face tokenizers load as well.

    Args:
        inner: a ``tokenizers.Tokenizer``.
    """

    def __init__(self, inner) -> None:
        self.inner = inner
        inner.encode_special_tokens = True
        self._ids = {
            part: next((i for name in names if (i := inner.token_to_id(name)) is not None), None)
            for part, names in _SPECIAL.items()
        }

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        kind: Kind = "bpe",
        lowercase: bool = False,
    ) -> "Tokenizer":
        """Learns a vocabulary.

        Args:
            texts: what to learn from.
            vocab_size: number of tokens at most, special ones included.
            kind: "bpe", merges of bytes (Sennrich et al., arXiv 1508.07909; Radford et al. 2019):
                knows every character and gives every text back; or "wordpiece" (Devlin et al.,
                arXiv 1810.04805): punctuation and spacing come back normalised, and characters
                that it has not seen as unknown.
            lowercase: whether to fold case, for tasks that write no text.

        Raises:
            ValueError: an unknown kind, or a vocabulary without room for single characters.
        """
        lib = _library()
        if kind not in ("bpe", "wordpiece"):
            raise ValueError(f"kind should be 'bpe' or 'wordpiece', got {kind!r}")
        bpe = kind == "bpe"
        special = [names[0 if bpe else 1] for names in _SPECIAL.values()]
        least = len(special) + (256 if bpe else 100)
        if vocab_size < least:
            raise ValueError(f"vocab_size should be at least {least} for {kind}, got {vocab_size}")

        texts = list(texts)
        normalizers: list = [lib.normalizers.NFC()]
        if lowercase:
            normalizers.append(lib.normalizers.Lowercase())
        normalizer = lib.normalizers.Sequence(normalizers)
        begin, end = special[2:4]
        if bpe:
            inner = lib.Tokenizer(lib.models.BPE(unk_token=special[1]))
            inner.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=True)
            inner.decoder = lib.decoders.ByteLevel()
            template, trim = f"$A {end}", [lib.processors.ByteLevel(trim_offsets=True)]
            trainer = lib.trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=special,
                initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            )
            inner.normalizer = normalizer
            inner.train_from_iterator(texts, trainer)
        else:
            vocabulary = _wordpieces(texts, vocab_size, special, normalizer)
            inner = lib.Tokenizer(lib.models.WordPiece(vocabulary, unk_token=special[1]))
            inner.add_special_tokens(special)
            inner.normalizer = normalizer
            inner.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
            inner.decoder = lib.decoders.WordPiece()
            template, trim = f"{begin} $A {end}", []
        ends = lib.processors.TemplateProcessing(
            single=template, special_tokens=[(special[i], i) for i in (2, 3)]
        )
        inner.post_processor = lib.processors.Sequence([*trim, ends])
        return cls(inner)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a ``tokenizer.json``, or the one in a folder.

        Raises:
            DataError: the file is not there, or no tokenizer.
        """
        lib, path = _library(), Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise DataError(path, None, "no such file")
        try:
            return cls(lib.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(path, None, f"not a tokenizer: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes a ``tokenizer.json``, or one into a folder, in place of one that was there."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        with replacing(path) as temporary:
            temporary.write_text(self.inner.to_str(), encoding="utf-8")

    def __len__(self) -> int:
        return self.inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, no special ones added."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, on all cores."""
        return [e.ids for e in self.inner.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_source(self, text: str) -> list[int]:
        """The tokens of a text as an encoder-decoder's encoder reads it."""
        return self.inner.encode(text).ids

    def encode_source_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode_source`` of each text, on all cores."""
        return [e.ids for e in self.inner.encode_batch_fast(texts)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text, and where in it each begins and ends, in characters."""
        encoding = self.inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return self.inner.decode(list(ids), skip_special_tokens=True).strip()

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """The text of each sequence."""
        return [self.decode(ids) for ids in batch]

    def _id(self, part: str) -> int:
        if (number := self._ids[part]) is None:
            raise ValueError(f"the tokenizer has no token {' or '.join(_SPECIAL[part])}")
        return number

    @property
    def pad_id(self) -> int:
        return self._id("pad")

    @property
    def unk_id(self) -> int:
        return self._id("unk")

    @property
    def bos_id(self) -> int:
        return self._id("bos")

    @property
    def eos_id(self) -> int:
        return self._id("eos")

    @property
    def mask_id(self) -> int:
        return self._id("mask")

    # BERT's names: a sequence begins with [CLS], and its parts end with [SEP].
    cls_id = bos_id
    sep_id = eos_id


def _wordpieces(
    texts: list[str], vocab_size: int, special: list[str], normalizer
) -> dict[str, int]:
    """A vocabulary of word pieces that depends on the texts alone.

    The library numbers characters within words in the order of a hash table that changes from run
    to run, and breaks ties by number. Here they are numbered before it begins.
    """
    lib = _library()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update("".join(normalizer.normalize_str(text).split()))
    ranked = sorted(counts, key=lambda c: (-counts[c], c))[: vocab_size // 4]
    inner = lib.Tokenizer(lib.models.WordPiece(unk_token=special[1]))
    inner.normalizer, inner.pre_tokenizer = normalizer, lib.pre_tokenizers.BertPreTokenizer()
    trainer = lib.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special, *(f"##{character}" for character in ranked)],
        initial_alphabet=ranked,
        limit_alphabet=len(ranked),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner.get_vocab()
