"""The page itself, in gradio: controls on the left, pictures and what is said of them beside."""

import html
import ipaddress
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...generation.choice import AUTO
from ...support.outside import require
from .lines import command_lines, python_lines
from .requests import LEAST_NATS, OFFERED, Request
from .studio import Answer, Studio, weights_of_sum
from .words import in_words

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..commands.sources import Sources

__all__ = ["Bounded", "is_loopback", "opened_page", "page", "shown"]

_SMALL = 128
"""Pictures below so many pixels are shown larger, by whole pixels."""

_BODY = 65_536
"""Number of bytes that a request may have; there is nothing to upload."""

_FOLDER = "GRADIO_TEMP_DIR"
"""Variable of the environment by which gradio is told where to keep pictures."""

_CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#title h1 { margin: 0.2rem 0 0; font-size: 1.5rem; font-weight: 650; }
#title p { margin: 0.2rem 0 0; opacity: 0.75; }
#pairs .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); }
#pairs .grid-wrap { min-height: 0; max-height: none; height: auto; }
@media (max-width: 640px) {
  #pairs .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
.rwg-said { margin: 0; padding-left: 1.1rem; line-height: 1.55; }
.rwg-error { margin: 0; padding: 0.7rem 0.9rem; border-left: 4px solid #c2410c; }
.rwg-note { margin: 0; opacity: 0.75; }
"""

_NOTE = "<p class='rwg-note'>Here are pairs: the model alone, and aligned beside it.</p>"

_MISTAKES = (ValueError, TypeError, ImportError, OSError, FloatingPointError)


@dataclass(frozen=True)
class _Controls:
    """The components that a visitor sets, in the order in which they are read."""

    prompt: Any
    backbone: Any
    nats: Any
    method: Any
    images: Any
    steps: Any
    seed: Any
    weights: Sequence[Any]
    button: Any

    @property
    def inputs(self) -> list[Any]:
        fixed = (self.prompt, self.backbone, self.nats, self.method)
        return [*fixed, self.images, self.steps, self.seed, *self.weights]


def page(studio: Studio, sources: "Sources", examples: Sequence[str] = ()) -> Any:
    """Returns the page, a `gradio.Blocks` that is to be launched.

    Arguments:
        studio: Makes the pictures.
        sources: The places and the keywords of models and rewards, for the lines.
        examples: Prompts to begin with.

    Raises:
        ImportError: If gradio is missing; says how to install it.
    """

    gr = require("gradio", "the page needs", "app")
    # Every ten minutes, pictures older than that go from the folder of gradio.
    with gr.Blocks(
        title="rwguidance", analytics_enabled=False, fill_width=True, delete_cache=(600, 600)
    ) as blocks:
        gr.Markdown(
            "# Reward-weighted guidance\n\nA frozen model, and what a reward makes of it: "
            "samples of $p(x)\\,e^{r(x)/\\beta}$, beside those of $p(x)$.",
            elem_id="title",
            latex_delimiters=[{"left": "$", "right": "$", "display": False}],
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                controls = _controls(gr, studio, examples)
            with gr.Column(scale=3, min_width=320):
                outputs = _outputs(gr)

        def make(*values: Any, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
            return shown(studio, sources, values, progress)

        gr.on(
            [controls.button.click, controls.prompt.submit, controls.nats.release],
            make,
            controls.inputs,
            outputs,
            show_progress_on=outputs[0],
            trigger_mode="always_last",
            concurrency_limit=1,
            api_visibility="private",
        )
    blocks.queue(max_size=studio.limits.waiting, api_open=False)
    return blocks


def _controls(gr: Any, studio: Studio, examples: Sequence[str]) -> _Controls:
    limits, names = studio.limits, list(studio.backbones)
    prompt = gr.Textbox(
        label="Prompt", max_length=limits.letters, max_lines=1, elem_id="prompt",
        value=examples[0] if examples else "", placeholder="what the pictures are to show",
    )  # fmt: skip
    if len(examples) > 1:
        gr.Examples(list(examples), prompt, label="or")
    nats = gr.Slider(
        LEAST_NATS, limits.nats, min(1.0, limits.nats), step=0.05, label="Strength, in nats",
        info="How far from the model: 0.5 is gentle, 1 is clear, 2 is strong.", elem_id="nats",
    )  # fmt: skip
    backbone = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
    with gr.Accordion("Reward", open=True):
        gr.Markdown("Weights in typical ranges of each reward; below 0 it is avoided.")
        weights = [
            gr.Slider(-1, 1, float(i == 0), step=0.05, label=name, elem_id=f"weight-{name}")
            for i, name in enumerate(studio.rewards)
        ]
    with gr.Accordion("Method, pictures, seed", open=False):
        method = gr.Dropdown(OFFERED, value=AUTO, label="Method")
        images = gr.Slider(
            1, limits.pictures, min(4, limits.pictures), step=1, label="Pictures", elem_id="images"
        )
        steps = gr.Number(
            None, label="Steps", precision=0, minimum=1, maximum=limits.steps,
            info="Empty: what the model recommends.",
        )  # fmt: skip
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
    button = gr.Button("Make pictures", variant="primary", elem_id="make")
    return _Controls(prompt, backbone, nats, method, images, steps, seed, weights, button)


def _outputs(gr: Any) -> list[Any]:
    """The components that show an answer: pictures, sentences, lines."""

    gallery = gr.Gallery(
        label="Base beside aligned", show_label=False, columns=4, object_fit="contain",
        height="auto", interactive=False, format="png", elem_id="pairs",
    )  # fmt: skip
    said = gr.HTML(_NOTE, elem_id="said", padding=True)
    with gr.Accordion("The lines that make these pictures again", open=False):
        command = gr.Code(
            label="Command line", language="shell", interactive=False, wrap_lines=True
        )
        python = gr.Code(label="Python", language="python", interactive=False, lines=1)
    return [gallery, said, command, python]


def shown(
    studio: Studio, sources: "Sources", values: Sequence[Any], progress: Any
) -> tuple[Any, ...]:
    """What the components show after a click: an answer, or no pictures and the reason."""

    prompt, backbone, nats, method, images, steps, seed, *weights = values
    try:
        chosen = dict(zip(studio.rewards, weights, strict=True))
        request = Request(prompt, backbone, chosen, nats, method, images, steps, seed)
        answer = studio.make(
            request, lambda stage, done, total: progress((done, total), desc=stage)
        )
    except (*_MISTAKES, LookupError) as error:
        return [], f"<p class='rwg-error'>{html.escape(str(error))}</p>", "", ""
    terms = weights_of_sum(chosen, studio.rewards)
    about = (request, answer.method, terms, sources, studio.batch_size)
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in in_words(answer))
    lines = command_lines(*about), python_lines(*about)
    return _captioned(answer), f"<ul class='rwg-said'>{said}</ul>", *lines


def _captioned(answer: Answer) -> "list[tuple[Image, str]]":
    """The pictures of an answer with their rewards, each pair side by side."""

    pictures = []
    for pair, row in zip(answer.pairs, answer.rows, strict=True):
        for kind, picture, reward in zip(("base", "aligned"), pair, row.rewards, strict=True):
            text = "no reward" if reward is None else f"{reward:.3g}"
            pictures.append((_large(picture), f"{kind} {text}"))
    return pictures


def _large(picture: "Image") -> "Image":
    """A picture of a few pixels enlarged, since a browser would blur it."""

    factor = max(1, 2 * _SMALL // max(picture.size)) if max(picture.size) < _SMALL else 1
    nearest = 0  # the number that Pillow has for this way of resampling
    return picture.resize((picture.width * factor, picture.height * factor), nearest)


@contextmanager
def opened_page(
    studio: Studio,
    sources: "Sources",
    examples: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[str]:
    """Serves the page until the context ends, and gives its address.

    Nothing is shared beyond the host: no tunnel, no uploads, no measuring, no calls but the page's
    own. What gradio keeps of the pictures is gone in the end.

    Arguments:
        studio: Makes the pictures.
        sources: The places and the keywords of models and rewards, for the lines.
        examples: Prompts to begin with.
        host: Address to listen on.
        port: Port to listen on; None is the first free one from 7860.

    Raises:
        ImportError: If gradio is missing; says how to install it.
        OSError: If the port is not free, or no port from 7860 to 7959 is.
    """

    gr = require("gradio", "the page needs", "app")
    with tempfile.TemporaryDirectory(prefix="rwguidance-page-") as folder:
        before = os.environ.get(_FOLDER)
        os.environ[_FOLDER] = folder
        blocks = page(studio, sources, examples)
        try:
            _, address, _ = blocks.launch(
                server_name=host, server_port=port, share=False, quiet=True, show_error=False,
                prevent_thread_lock=True, max_file_size=1, ssr_mode=False, pwa=False,
                mcp_server=False, enable_monitoring=False, footer_links=[], css=_CSS,
                theme=gr.themes.Default(  # fonts of the system: those of gradio come from elsewhere
                    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
                ),
                app_kwargs={"middleware": [(Bounded, [], {})]},
            )  # fmt: skip
            yield address
        finally:
            blocks.close(verbose=False)
            studio.close()
            os.environ.pop(_FOLDER)
            os.environ |= {} if before is None else {_FOLDER: before}


class Bounded:
    """Refuses requests that bring more than a page of text, and those that do not say how much."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH"):
            headers = dict(scope["headers"])
            length = headers.get(b"content-length", b"")
            # A body in chunks may be longer than the length that is stated beside them.
            chunked = b"transfer-encoding" in headers
            if chunked or not length.isdigit() or int(length) > _BODY:
                await send({"type": "http.response.start", "status": 413, "headers": []})
                await send({"type": "http.response.body", "body": b"too large"})
                return
        await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address."""

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
