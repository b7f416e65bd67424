"""Readers: what they return, and that each error names the file and the line."""

import gzip
import lzma

import pytest

from fastseq.data import DataError, read_documents, read_lines, read_tsv, split_sentences


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)]
)
def test_columns_are_chosen_and_stripped(tmp_path, suffix, pack):
    path = tmp_path / f"pairs.tsv{suffix}"
    path.write_bytes(pack("\ufeffa cat\tun chat \t1\r\nÉté\tsummer\t2\n".encode()))
    rows = list(read_tsv(path, [2, 1]))
    assert [row.fields for row in rows] == [("un chat", "a cat"), ("summer", "Été")]
    assert [(row.path, row.line) for row in rows] == [(path, 1), (path, 2)]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"a\tb\na\n", 2, "1 columns, where the first line has 2"),
        (b"a\tb\na\tb\tc\n", 2, "3 columns, where the first line has 2"),
        (b"a\tb\n\nc\td\n", 2, "the line is empty"),
        (b"a\tb\nc\t \n", 2, "column 2 is empty"),
        (b"a\nb\n", 1, "no column 2: the line has 1"),
        (b"a\tb\nc\t\xff\n", 2, "not UTF-8: byte 0xff at position 2"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, line, message):
    path = tmp_path / "bad.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_tsv(path, [1, 2]))
    assert str(error.value) == f"{path}:{line}: {message}"


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_damaged_and_missing_files_are_named(tmp_path, suffix):
    text = "".join(f"{i}\t{i * i}\n" for i in range(5000)).encode()
    packed = {".xz": lzma.compress, ".gz": gzip.compress}[suffix](text)
    cut, junk = tmp_path / f"cut{suffix}", tmp_path / f"junk{suffix}"
    cut.write_bytes(packed[: len(packed) // 2])
    junk.write_bytes(b"no archive")
    for path in (cut, junk):
        with pytest.raises(DataError, match=rf"{path.name}:\d+: damaged {suffix} file"):
            list(read_lines(path))
    with pytest.raises(DataError, match=r"absent.txt: No such file"):
        list(read_lines(tmp_path / "absent.txt"))


def test_documents_are_parted_by_empty_lines_or_are_a_column(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\none\ntwo\n\n\nthree\n")
    assert list(read_documents(text)) == [["one", "two"], ["three"]]
    table = tmp_path / "text.tsv"
    table.write_text("1\tone\n2\ttwo\n")
    assert list(read_documents(table, 2)) == [["one"], ["two"]]


def test_sentences_end_where_a_capital_follows():
    assert split_sentences('It runs, e.g. here. "Does it?" Yes! v. 2.0 came.') == [
        "It runs, e.g. here.",
        '"Does it?"',
        "Yes! v. 2.0 came.",
    ]
