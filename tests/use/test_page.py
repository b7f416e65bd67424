"""The page of ``fastseq demo``, as seen and used in a browser."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from fastseq.models import Seq2Seq, Seq2SeqConfig
from fastseq.use import Translator
from fastseq.use.page import HOST, Desk, serve
from tests.use.browser import CHROMIUM, Browser, wait

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the page for a model."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "fastseq.cli", "demo", "--model", folder, "--port", port]
    # NiceGUI serves otherwise where it finds a test's name.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    process = subprocess.Popen([*map(str, command), "--device", "cpu"], env=environment)
    address = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        assert process.poll() is None, "the server has ended"
        try:
            return urlopen(address, timeout=10).status == 200
        except OSError:
            return False

    try:
        wait(answers, 60)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@needs_browser
def test_a_sentence_is_translated_in_the_page(transformer, tmp_path):
    for name in ("nicegui", "matplotlib", "websockets"):
        pytest.importorskip(name)
    text = "the dog hears my friend today"
    ((best,),) = Translator.open(transformer.folder).candidates([text])
    with served(transformer.folder) as address, Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=address)
        ready = "window.did_handshake && document.activeElement.tagName == 'INPUT'"
        wait(lambda: browser.value(ready), 60)
        browser.type(text)
        read = "document.querySelector('.translation')?.checkVisibility() && " + (
            "document.querySelector('.translation').textContent"
        )
        assert wait(lambda: browser.value(read), 30) == best.text
        speed = browser.value("document.querySelector('.speed').textContent")
        assert re.fullmatch(rf"{best.tokens} tokens in \d+ ms · [\d,]+ tokens/s", speed)
        assert wait(lambda: browser.value("document.querySelector('.alignment svg') != null"), 5)
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000

        browser.type("the cat sees " * 40)
        told = "document.querySelector('.problem').textContent"
        problem = wait(lambda: browser.value(told), 30)
        assert re.match(r"\d+ tokens, the model reads at most 40", problem)
        asked = browser.requests()
        assert len(asked) > 5
        outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
        assert not outside


def test_without_attention_the_page_says_why_there_is_no_map(transformer):
    trained = Translator.open(transformer.folder)
    config = Seq2SeqConfig(
        vocab_size=len(trained.tokenizer), attention=None, hidden_size=16, embedding_size=16
    )
    desk = Desk(Translator(Seq2Seq(config), trained.tokenizer))
    shown = desk.translate("the cat", 2)
    assert shown.picture == ""
    assert "no attention" in shown.note


def test_a_port_that_is_taken_is_told(transformer):
    for name in ("nicegui", "matplotlib"):
        pytest.importorskip(name)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be had: Address alr"):
            serve(Translator.open(transformer.folder), "x", port, show=False)


@pytest.mark.parametrize("name", ["nicegui", "matplotlib"])
def test_what_is_not_installed_is_named(transformer, monkeypatch, name):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"{name} is not installed: pip install {name}"):
        serve(Translator.open(transformer.folder), "x", 1, show=False)
