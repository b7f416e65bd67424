"""Text to learn from: readers, harvesters, tokenizers, batches, and a sample corpus."""

from pathlib import Path

from .batching import Sequences, pad, pad_rows, token_batches
from .catalogs import find_catalogs, harvest_catalogs, read_catalog
from .debian import AptError, harvest_debian
from .files import DataError, Row, read_documents, read_lines, read_tsv, split_sentences
from .language import Blocks
from .pairs import Split, clean_pair, clean_pairs, held_out, split_pairs, write_pairs
from .pretraining import IGNORED, Corpus, SentencePair, assemble, mask_tokens
from .squad import Question, Window, best_answer, read_squad, windows
from .tokenizer import Tokenizer

_SAMPLE = Path(__file__).parent / "sample"
# English and French sentence pairs; its NOTICE says whose they are.
SAMPLE_TRAIN = _SAMPLE / "en-fr.train.tsv.xz"
SAMPLE_VALID = _SAMPLE / "en-fr.valid.tsv.xz"

__all__ = [
    "IGNORED",
    "SAMPLE_TRAIN",
    "SAMPLE_VALID",
    "AptError",
    "Blocks",
    "Corpus",
    "DataError",
    "Question",
    "Row",
    "SentencePair",
    "Sequences",
    "Split",
    "Tokenizer",
    "Window",
    "assemble",
    "best_answer",
    "clean_pair",
    "clean_pairs",
    "find_catalogs",
    "harvest_catalogs",
    "harvest_debian",
    "held_out",
    "mask_tokens",
    "pad",
    "pad_rows",
    "read_catalog",
    "read_documents",
    "read_lines",
    "read_squad",
    "read_tsv",
    "split_pairs",
    "split_sentences",
    "token_batches",
    "windows",
    "write_pairs",
]
