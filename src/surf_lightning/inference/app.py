"""`surf app`: a local page that separates what a visitor drops on it.

This file is the ``app.py`` of a Space on the Hugging Face Hub too, whose variable SURF_CHECKPOINT names the separator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: nothing is asked of the network

import gradio as gr

from surf_lightning.audio.streams import AudioFile
from surf_lightning.errors import UserError
from surf_lightning.inference.display import Progress, Separated, separate_image, separate_recording
from surf_lightning.inference.hub import local_path
from surf_lightning.inference.separate import choose_device
from surf_lightning.inference.separator import RegressionSeparator, Separator, load_separator

MAX_SAMPLES = 16  # of the posterior
MAX_BYTES = "1gb"  # of an upload
BUTTONS: Any = {"buttons": ["download"]}  # Gradio's others would send what is shown to its own servers
IMAGE: Any = {"format": "png", **BUTTONS}


class Page:
    """A separator behind a page.

    Args:
        separator: from ``load_separator``.
        name: of it, as visitors see it.
        max_minutes: the longest recording that is accepted.
        examples: inputs to choose from.
    """

    def __init__(self, separator: Separator, name: str, max_minutes: float = 10, examples: list[Path] | None = None):
        self.separator, self.name, self.max_minutes, self.examples = separator, name, max_minutes, examples or []
        self.is_audio = separator.signal["kind"] == "audio"
        self.is_flow = not isinstance(separator, RegressionSeparator)

    def separate(self, path: str | None, num_samples: int, seed: int, progress: Progress) -> Iterator[list[Any]]:
        """What fills the page's outputs, once; its files are gone when the iterator goes on.

        Raises:
            gr.Error: the input is missing, too long or cannot be used; the message is the reason.
        """
        if not path:
            raise gr.Error("Choose an input first.")
        with TemporaryDirectory(prefix="surf-app-") as folder:
            try:
                if self.is_audio:
                    self.check_length(Path(path))
                separate = separate_recording if self.is_audio else separate_image
                found = separate(self.separator, Path(path), Path(folder), num_samples, seed, progress)
            except (ValueError, OSError) as error:  # UserError and BadAudio are of them
                raise gr.Error(f"{Path(path).name}: {error}") from error
            yield self.outputs(found)

    def check_length(self, path: Path) -> None:
        """Raises ValueError if a recording is longer than the page accepts."""
        file = AudioFile.open(path)
        if file.frames > 60 * self.max_minutes * file.rate:
            raise ValueError(
                f"{file.frames / file.rate / 60:.1f} minutes; this page takes {self.max_minutes:g}. "
                "`surf separate` has no limit."
            )

    def outputs(self, found: Separated) -> list[Any]:
        """In the order of the page's components."""
        sources, pictures = found.files[: self.separator.num_sources], map(str, found.pictures)
        shown = [next(pictures)]
        for source, picture in zip(sources, pictures, strict=True):
            shown += [str(source), picture] if self.is_audio else [picture]
        curve = [gr.update(value=found.curve and str(found.curve), visible=found.curve is not None)]
        return [*shown, *curve, [str(file) for file in found.files], "\n\n".join(found.remarks)]

    def blocks(self) -> gr.Blocks:
        """The page itself."""
        with gr.Blocks(title=f"surf: {self.name}", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
            gr.Markdown(f"# {self.name}\n\n{self._introduction()}")
            seed = gr.State(0)
            with gr.Row():
                given = self._input()
                with gr.Column():
                    label = "Posterior samples: their mean is the estimate"
                    samples = gr.Slider(1, MAX_SAMPLES, 1, step=1, precision=0, label=label, visible=self.is_flow)
                    start = gr.Button("Separate", variant="primary")
                    again = gr.Button("Draw again", visible=self.is_flow)
            outputs = self._outputs()
            blocks.queue(max_size=32)

            def separate(
                path: str | None,
                number: int,
                drawn: int,
                progress: Any = gr.Progress(),  # noqa: B008  Gradio's way
            ) -> Iterator[list[Any]]:
                yield from self.separate(path, number, drawn, lambda share: progress(share, desc="separating"))

            start.click(lambda: 0, None, seed).then(separate, [given, samples, seed], outputs)
            again.click(lambda drawn: drawn + 1, seed, seed).then(separate, [given, samples, seed], outputs)
        return blocks

    def _introduction(self) -> str:
        count = self.separator.num_sources
        if self.is_audio:
            return (
                f"Separates a recording into {count} sources that sum to it. What lies above "
                f"{self.separator.signal['sample_rate'] / 2000:g} kHz is shared equally among them."
            )
        channels, height, width = self.separator.signal["shape"]
        kind = "grey" if channels == 1 else "colour"
        return f"Separates the average of {count} {kind} images of {width}x{height} pixels into these images."

    def _input(self) -> Any:
        if self.is_audio:
            label = f"Recording, at most {self.max_minutes:g} minutes"
            source: Any = {"sources": ["upload", "microphone"], "type": "filepath", "editable": False, **BUTTONS}
            given: Any = gr.Audio(label=label, **source)
        else:
            given = gr.Image(sources=["upload", "clipboard"], type="filepath", label="Mixture", height=280, **IMAGE)
        if self.examples:
            gr.Examples([str(path) for path in self.examples], given, label="Examples")
        return given

    def _outputs(self) -> list[Any]:
        sources = [f"Source {k + 1}" for k in range(self.separator.num_sources)]
        with gr.Row():
            pictures = ["Mixture"] if self.is_audio else ["Mixture", *sources]
            found: list[Any] = [gr.Image(label=label, interactive=False, **IMAGE) for label in pictures]
        for label in sources if self.is_audio else []:
            with gr.Row():
                found.append(gr.Audio(label=label, interactive=False, **BUTTONS))
                found.append(gr.Image(label=label, interactive=False, **IMAGE))
        found.append(gr.Image(label="Uncertainty over time", interactive=False, visible=False, **IMAGE))
        found.append(gr.File(label="Download", file_count="multiple", interactive=False))
        return [*found, gr.Markdown()]


def open_page(checkpoint: str, device: str = "auto", max_minutes: float = 10, trust: bool = False) -> Page:
    """The page of a checkpoint.

    Raises:
        UserError: it cannot be loaded, or there is no such device.
    """
    local = local_path(checkpoint)
    separator = load_separator(local, choose_device(device), trust)
    examples = sorted(Path(local, "examples").glob("*.*")) if os.path.isdir(local) else []
    path = Path(checkpoint)
    name = path.resolve().parts[-3] if path.parent.name == "checkpoints" else path.name  # of a run: the run's
    return Page(separator, name, max_minutes, examples)


def launch(page: Page, port: int | None = None, block: bool = True) -> str:
    """Serve the page on 127.0.0.1, or where GRADIO_SERVER_NAME says (a Space sets it); until Ctrl-C if ``block``.

    Returns:
        Its address.

    Raises:
        UserError: ``port`` is taken, or is no port.
    """
    blocks = page.blocks()
    looks: Any = {"share": False, "ssr_mode": False, "footer_links": [], "quiet": True}
    try:
        _, address, _ = blocks.launch(server_port=port, max_file_size=MAX_BYTES, prevent_thread_lock=True, **looks)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port} cannot be served: {error}") from error
    print(f"{page.name} at {address} (Ctrl-C ends it)", flush=True)
    if block:
        blocks.block_thread()
    return str(address)


if __name__ == "__main__":  # a Space
    launch(open_page(os.environ.get("SURF_CHECKPOINT", "digits")))
