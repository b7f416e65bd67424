"""Harvesters, on catalogs made here and on descriptions in apt's format."""

import struct

import pytest

from fastseq.data import (
    AptError,
    DataError,
    debian,
    find_catalogs,
    harvest_catalogs,
    harvest_debian,
)
from fastseq.data.debian import join_descriptions, parse_descriptions


def catalog(messages: dict[str, str]) -> bytes:
    """A .mo file (GNU gettext manual, section 10.3)."""
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", **messages}
    pairs = sorted((k.encode(), v.encode()) for k, v in messages.items())
    head = 28 + 16 * len(pairs)
    tables, blob = [], b""
    for column in (0, 1):
        for pair in pairs:
            tables.append(struct.pack("<II", len(pair[column]), head + len(blob)))
            blob += pair[column] + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, head)
    return header + b"".join(tables) + blob


@pytest.fixture
def locales(tmp_path):
    for language, messages in {
        "fr": {"Open": "Ouvrir", "menu\x04File": "Fichier", "cat\0cats": "chat\0chats"},
        "fr_CA": {"Mail": "Courriel"},
        "de": {"Open": "Öffnen"},
    }.items():
        folder = tmp_path / "locale" / language / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "app.mo").write_bytes(catalog(messages))
    return tmp_path / "locale"


def test_catalogs_of_a_language_give_messages_without_contexts(locales):
    catalogs = find_catalogs([locales], "fr")
    assert [path.parent.parent.name for path in catalogs] == ["fr", "fr_CA"]
    pairs, errors = harvest_catalogs(catalogs)
    assert not errors
    assert sorted(pairs) == [
        ("File", "Fichier"),
        ("Mail", "Courriel"),
        ("Open", "Ouvrir"),
        ("cat", "chat"),
    ]


def test_bad_catalogs_are_named_and_left_out(locales):
    bad = locales / "fr" / "LC_MESSAGES" / "bad.mo"
    for content in (b"", b"no catalog", catalog({"a": "b"})[:70]):
        bad.write_bytes(content)
        pairs, (error,) = harvest_catalogs(find_catalogs([locales], "fr"))
        assert len(pairs) == 4
        assert str(error).startswith(f"{bad}: not a message catalog")
    with pytest.raises(DataError, match="not a folder"):
        find_catalogs([bad], "fr")


ENGLISH = """Package: a
Description-md5: 00000000000000000000000000000001
Description-en: small editor
 It edits
 texts.
 .
 Features:
  * fast
  * small

Package: b
Description-md5: 00000000000000000000000000000002
Description-en: big editor
 It edits much.

"""
FRENCH = """Package: a
Description-md5: 00000000000000000000000000000001
Description-fr: petit éditeur
 Il édite des
 textes.
 .
 Fonctions :
  * rapide
  * <trans>

Package: b
Description-md5: 00000000000000000000000000000002
Description-fr: grand éditeur
 Il édite.
 .
 Beaucoup.

"""


def test_descriptions_join_paragraph_by_paragraph():
    pairs = join_descriptions(parse_descriptions(ENGLISH), parse_descriptions(FRENCH))
    assert list(pairs) == [
        ("small editor", "petit éditeur"),
        ("It edits texts.", "Il édite des textes."),
        ("Features:", "Fonctions :"),
        ("* fast", "* rapide"),
        ("big editor", "grand éditeur"),  # of two paragraphs against one, the title alone
    ]


def test_apt_is_asked_for_its_files(tmp_path, monkeypatch):
    (tmp_path / "en").write_text(ENGLISH)
    (tmp_path / "fr").write_text(FRENCH)

    def run(command):
        if "cat-file" in command:
            with open(command[-1]) as file:
                return file.read()
        assert "Dir::State::lists=x" in command
        language = command[-1].removeprefix("Language: ")
        return f"{tmp_path / language}\n"

    monkeypatch.setattr(debian, "_run", run)
    monkeypatch.setattr(debian.shutil, "which", lambda name: name)
    assert len(harvest_debian("fr", ("Dir::State::lists=x",))) == 5
    with pytest.raises(AptError, match=r"no descriptions in 'de' here.*apt-get update"):
        harvest_debian("de", ("Dir::State::lists=x",))


def test_without_apt_it_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AptError, match="apt-get is not on this machine"):
        harvest_debian("fr")
