"""Data that the tests of training share."""

from itertools import islice

import pytest

from fastseq.data import SAMPLE_TRAIN, SAMPLE_VALID, read_tsv, write_pairs


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> dict[str, list[str]]:
    """Settings that name files with a part of the sample."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, source, count in (("train", SAMPLE_TRAIN, 500), ("valid", SAMPLE_VALID, 40)):
        rows = islice(read_tsv(source, [1, 2]), count)
        write_pairs([row.fields for row in rows], folder / f"{name}.tsv")
    return {f"data.{name}": [str(folder / f"{name}.tsv")] for name in ("train", "valid")}
