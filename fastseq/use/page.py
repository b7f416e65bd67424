"""A local web page, on NiceGUI, where a translator can be tried."""

import io
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..models import CheckpointError
from .alignment import align, plot
from .trained import TextError
from .writing import Translator

HOST = "127.0.0.1"
_STYLE = """
body { background: #f4f6f8; }
.alignment svg { width: auto; height: auto; max-width: 100%; }
"""


@dataclass(frozen=True)
class Shown:
    """What the page shows of a sentence: the translation, what it took, and the heat map's SVG, or
    why there is none."""

    text: str
    tokens: int
    seconds: float
    picture: str
    note: str = ""


class Desk:
    """Translates for the page, one sentence at a time."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        self.lock = threading.Lock()

    def translate(self, text: str, beam_size: int) -> Shown:
        """Raises TextError where the model cannot read the text."""
        with self.lock:
            started = time.perf_counter()
            ((best,),) = self.translator.candidates([text], beam_size=beam_size)
            seconds = time.perf_counter() - started
            try:
                alignment = align(self.translator, text, best.text)
            except (CheckpointError, TextError) as error:
                return Shown(best.text, best.tokens, seconds, "", str(error))
            buffer = io.StringIO()
            plot(alignment).savefig(buffer, format="svg", transparent=True)
            svg = buffer.getvalue()
            return Shown(best.text, best.tokens, seconds, svg[svg.index("<svg") :])


def serve(translator: Translator, name: str, port: int, show: bool) -> None:
    """Serves the page on this machine until it is interrupted.

    Args:
        name: of the model, for the page. show: open it in a browser.

    Raises:
        ImportError: NiceGUI or matplotlib is not there.
        OSError: the port is taken.
    """
    try:
        import matplotlib  # noqa: F401  the page draws with it
        from nicegui import ui
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed: pip install {error.name}", name=error.name
        ) from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"port {port} of {HOST} cannot be had: {error.strerror}") from None
    desk = Desk(translator)
    desk.translate("a", 1)  # what is done once only is no part of the speed that is shown
    ui.run(
        lambda: build(desk, name),
        host=HOST,
        port=port,
        title="fastseq",
        favicon="🔤",
        reload=False,
        show=show,
    )


def build(desk: Desk, name: str) -> None:
    """The page's elements."""
    from nicegui import run, ui

    model = desk.translator.model
    size = sum(p.numel() for p in model.parameters())
    ui.add_css(_STYLE)
    ui.colors(primary="#1d5f8a")
    with ui.column().classes("w-full max-w-4xl mx-auto p-4 gap-4"):
        with ui.row().classes("items-baseline w-full"):
            ui.label("fastseq").classes("text-2xl font-bold text-primary")
            ui.space()
            kind = type(model).__name__
            ui.label(f"{name} · {kind}, {size:,} weights").classes("text-gray-500")
        with ui.card().classes("w-full"):
            sentence = ui.input(placeholder="Type a sentence and press Enter").props(
                'outlined autofocus input-class="text-lg" aria-label="sentence"'
            )
            sentence.classes("w-full")
            with ui.row().classes("items-center w-full"):
                button = ui.button("Translate")
                ui.label("Beam").classes("text-gray-500 ml-4")
                beam = ui.toggle([1, 4, 8], value=4).props("size=sm padding='xs md'")
                ui.space()
                spinner = ui.spinner(size="1.5em")
                spinner.visible = False
        with ui.card().classes("w-full") as answer:
            text = ui.label().classes("text-xl translation")
            speed = ui.label().classes("text-gray-500 speed")
        with ui.card().classes("w-full items-center") as map_card:
            ui.label("What the model looked at for each word").classes("text-gray-500")
            picture: Any = ui.html("", sanitize=False).classes("alignment")
            note = ui.label().classes("text-gray-500 note")
        problem = ui.label().classes("text-red-700 problem")
    answer.visible = map_card.visible = False

    async def translate() -> None:
        if not sentence.value.strip() or spinner.visible:
            return
        spinner.visible, problem.text = True, ""
        button.disable()
        try:
            shown = await run.io_bound(desk.translate, sentence.value, beam.value)
        except TextError as error:
            answer.visible = map_card.visible = False
            problem.text = error.reason
            return
        finally:
            spinner.visible = False
            button.enable()
        if shown is None:  # the server is stopping
            return
        text.text = shown.text or "(nothing)"
        rate = shown.tokens / max(shown.seconds, 1e-9)
        speed.text = (
            f"{shown.tokens} tokens in {1000 * shown.seconds:.0f} ms · {rate:,.0f} tokens/s"
        )
        picture.content, note.text = shown.picture, shown.note
        answer.visible = map_card.visible = True

    button.on_click(translate)
    sentence.on("keydown.enter", translate)
