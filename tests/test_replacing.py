"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from fastseq._replacing import replacing


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="full"), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("full")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_modes_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    with replacing(tmp_path / "file.tsv.xz") as temporary:
        temporary.write_text("new")
        assert temporary.suffixes[-2:] == [".tsv", ".xz"]
    modes = [(tmp_path / name).stat().st_mode for name in ("other", "file.tsv.xz")]
    assert modes[0] == modes[1]
