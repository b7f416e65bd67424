"""Lines from arguments, files and standard input, with where they stand."""

import os
import threading

import pytest

from fastseq.data import DataError
from fastseq.use.lines import pools


@pytest.fixture
def stdin(monkeypatch):
    """The end of a pipe that standard input reads from."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as file, os.fdopen(writing, "wb", buffering=0) as end:
        monkeypatch.setattr("sys.stdin", file)
        yield end


def test_arguments_and_files_come_in_pools(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\nthree\r\nfour")
    found = list(pools(["a", "b"], [path], 3))
    assert [[line.text for line in pool] for pool in found] == [
        ["a", "b"],
        ["one", "", "three"],
        ["four"],
    ]
    assert found[2][0][1:] == (str(path), 4)
    assert str(found[1][2].wrong("bad")) == f"{path}:3: bad"


def test_standard_input_is_read_as_it_comes(stdin):
    source = pools([], [], 4)
    stdin.write(b"one\nt")
    assert [line.text for line in next(source)] == ["one"]
    stdin.write("wo\nthrée\n\n4\n5\n6\nlast".encode())
    assert [line.text for line in next(source)] == ["two", "thrée", "", "4"]
    assert [(line.text, line.number) for line in next(source)] == [("5", 6), ("6", 7)]
    threading.Timer(0.1, stdin.close).start()  # no line until the other end is closed
    assert [line.text for line in next(source)] == ["last"]
    assert next(source, None) is None


def test_a_line_that_is_no_utf8_is_named(stdin, tmp_path):
    stdin.write(b"fine\nbad \xff\n")
    stdin.close()
    with pytest.raises(DataError, match="<standard input>:2: not UTF-8: byte 0xff"):
        list(pools([], [], 4))
    with pytest.raises(DataError, match=r"absent.txt: No such file"):
        list(pools([], [tmp_path / "absent.txt"], 4))
