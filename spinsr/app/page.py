"""The page itself, of Gradio's parts."""

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base, Default

from spinsr.app.jobs import Cancelled, Jobs
from spinsr.data import photograph
from spinsr.weights import DEFAULT_SCALE
from spinsr.weights.models import MODELS

# Seconds: how often uploads and results are looked at, and how old they may become.
DELETE_EVERY, DELETE_AFTER = 300, 7200
WHOLE, NO_BLOCK = 'whole image', 'none'
TILES = [128, 256, 512]
DEFAULT_TILE = 256
INTRODUCTION = """# spinsr
Enlarge a photograph. Nothing is sent to other servers, and nothing is kept."""
CSS = 'footer {display: none !important}'


def build(jobs: Jobs) -> gr.Blocks:
    """Builds the page.

    Args:
        jobs: Does the work.
    """
    scales = {
        name: [model.scale for model in MODELS if model.name == name] for name in sorted({m.name for m in MODELS})
    }
    # A single model leaves no choice to explain.
    purposes = {model.name: model.trained_for for model in MODELS}
    purpose = '; '.join(f'{name}: {text}' for name, text in purposes.items()) if len(purposes) > 1 else None
    first = MODELS[0].name
    first_scale = DEFAULT_SCALE if DEFAULT_SCALE in scales[first] else scales[first][0]

    def block_choices(model: str, scale: int) -> list[Any]:
        return [NO_BLOCK, *range(jobs.blocks(model, scale))]

    def choose(model: str, scale: int) -> tuple[Any, Any]:
        scale = scale if scale in scales[model] else scales[model][0]
        blocks = block_choices(model, scale)
        return gr.Dropdown(scales[model], value=scale), gr.Dropdown(blocks, value=blocks[:2][-1])

    def clear() -> tuple[Any, ...]:
        disabled = gr.DownloadButton('Download', value=None, interactive=False)
        return gr.Image(None, visible=False), '', gr.Button(interactive=False), None, disabled, None

    def show(source: str | None) -> tuple[Any, ...]:
        if source is None:
            return gr.Image(None, visible=False), '', gr.Button(interactive=False)
        with _errors():
            picture, size = jobs.preview(Path(source))
        return gr.Image(picture, visible=True), size, gr.Button(interactive=True)

    def run(
        source: str | None,
        model: str,
        scale: int,
        tile: int | str,
        block: int | str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        def report(share: float, text: str) -> None:
            progress(share, desc=text)

        if source is None:
            raise gr.Error('Choose an image first.', print_exception=False)
        with _errors():
            result = jobs.run(
                request.session_hash or '',
                Path(source),
                model,
                scale,
                tile=None if isinstance(tile, str) else tile,  # WHOLE
                block=None if isinstance(block, str) else block,  # NO_BLOCK
                report=report,
            )
        return (
            (result.before, result.after),
            result.summary,
            gr.DownloadButton(f'Download {result.file.name}', value=result.file, interactive=True),
            result.superpixels,
        )

    def cancel(request: gr.Request) -> None:
        jobs.cancel(request.session_hash or '')

    def forget(request: gr.Request) -> None:
        jobs.forget(request.session_hash or '')

    with gr.Blocks(title='spinsr', analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                # Not gr.Image: the file is to arrive as it is, also where a browser cannot show it (TIFF, 16 bits).
                source = gr.File(
                    label=f'Image, {jobs.limits}',
                    file_types=['image', *photograph.FORMATS],
                    height=140,
                    elem_id='source',
                )
                preview = gr.Image(label='Input', interactive=False, visible=False, height=220, buttons=[])
                model = gr.Dropdown(list(scales), value=first, label='Model', info=purpose, elem_id='model')
                scale = gr.Dropdown(scales[first], value=first_scale, label='Scale', elem_id='scale')
                tile = gr.Dropdown(
                    [WHOLE, *TILES],
                    value=DEFAULT_TILE,
                    label='Tile',
                    info='Side in pixels of the image. Smaller tiles take less memory.',
                    elem_id='tile',
                )
                block = gr.Dropdown(
                    block_choices(first, first_scale),
                    value=0,
                    label='Superpixels of block',
                    elem_id='block',
                )
                with gr.Row():
                    start = gr.Button('Upscale', variant='primary', interactive=False, min_width=80, elem_id='start')
                    stop = gr.Button('Cancel', variant='stop', min_width=80, elem_id='stop')
            with gr.Column(scale=2, min_width=300):
                slider = gr.ImageSlider(
                    label='Bicubic and result',
                    interactive=False,
                    type='filepath',
                    buttons=['fullscreen'],
                    elem_id='slider',
                )
                summary = gr.Textbox(label='Result', interactive=False, lines=2, elem_id='summary')
                download = gr.DownloadButton('Download', interactive=False, variant='primary', elem_id='download')
                superpixels = gr.Gallery(
                    label='Superpixels',
                    columns=2,
                    interactive=False,
                    format='png',
                    object_fit='contain',
                    buttons=['fullscreen'],
                    elem_id='superpixels',
                )
        private: dict[str, Any] = {'api_visibility': 'private'}
        model.input(choose, [model, scale], [scale, block], **private)
        changed = source.change(
            clear, None, [preview, summary, start, slider, download, superpixels], show_progress='hidden', **private
        )
        changed.then(show, source, [preview, summary, start], show_progress='hidden', **private)
        running = start.click(
            run,
            [source, model, scale, tile, block],
            [slider, summary, download, superpixels],
            show_progress_on=slider,
            concurrency_limit=1,
            **private,
        )
        stop.click(cancel, queue=False, cancels=running, **private)
        page.unload(forget)
    page.queue(api_open=False)
    return page


def theme() -> Base:
    """The look: fonts of the system, so that nothing is asked of another host."""
    return Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Shows errors in the page. Gradio takes messages as HTML."""
    try:
        yield
    except Cancelled:
        raise gr.Error('Cancelled.', title='', print_exception=False) from None
    except (ValueError, OSError, MemoryError) as error:
        text = html.escape(str(error) or type(error).__name__)
        raise gr.Error(text, duration=None, print_exception=False) from error
