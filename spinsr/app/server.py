"""Serves the page, and deletes everything that it has received and made."""

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Gradio refuses larger uploads without saying why, so it starts at a multiple of the limit, which `Jobs` explains.
HARD_LIMIT = 4


def check_gradio() -> None:
    """Finds out whether Gradio is there, without importing it.

    Raises:
        ImportError: It is not; the message says how to install it.
    """
    import importlib.util

    if importlib.util.find_spec('gradio') is None:
        raise ImportError("the page needs Gradio: pip install 'spinsr[app]'")


def check_address(host: str, port: int) -> None:
    """Finds out whether an address can be served.

    Raises:
        OSError: It cannot; the message says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == 'posix':
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(
            f'cannot serve on {host}, port {port} ({error.strerror}): choose another --port or --host'
        ) from error


def serve(
    host: str,
    port: int,
    *,
    device: Any = 'cpu',
    max_bytes: int,
    max_pixels: int,
    open_browser: bool = False,
    started: Callable[[str], None],
) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Everything that comes and everything that is made lies in one temporary folder, which is deleted at the end.

    Args:
        host: Address to listen on.
        port: Of the host.
        device: As for `Jobs`, and so are `max_bytes` and `max_pixels`.
        open_browser: Open the page in the user's browser.
        started: Called with the URL once the page can be opened.

    Raises:
        OSError: The address cannot be served, the server does not start in time, or the temporary folder cannot be
            written.
    """
    with (
        _interrupted_by_sigterm(),
        tempfile.TemporaryDirectory(prefix='spinsr-app-', ignore_cleanup_errors=True) as folder,
        _temporary_files_in(Path(folder)),
    ):
        from spinsr.app import page
        from spinsr.app.jobs import Jobs

        jobs = Jobs(Path(folder) / 'results', device, max_bytes, max_pixels)
        blocks = page.build(jobs)
        try:
            with _start_error(host, port):
                _, url, _ = blocks.launch(
                    server_name=host,
                    server_port=port,
                    inbrowser=open_browser,
                    prevent_thread_lock=True,
                    quiet=True,
                    share=False,
                    max_file_size=HARD_LIMIT * max_bytes,
                    enable_monitoring=False,
                    run_history=False,
                    footer_links=[],
                    ssr_mode=False,
                    mcp_server=False,
                    theme=page.theme(),
                    css=page.CSS,
                )
            started(url)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            jobs.close()
            blocks.close(verbose=False)


@contextlib.contextmanager
def _start_error(host: str, port: int) -> Iterator[None]:
    """Replaces the error of Gradio, which takes a server that did not start in 5 s for a busy port."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f'cannot serve on {host}, port {port}: the port is in use, or the server did not start within 5 seconds; '
            'try again, or choose another --port'
        ) from error


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Makes Gradio, which reads its settings when it is imported, keep all files in a folder and ask no other host."""
    settings = {'GRADIO_ANALYTICS_ENABLED': 'False', 'GRADIO_TEMP_DIR': str(folder / 'gradio')}
    before, tempdir = {name: os.environ.get(name) for name in settings}, tempfile.tempdir
    os.environ.update(settings)
    # Uploads arrive in the system's folder first.
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = tempdir
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM is Ctrl-C: the temporary folder is deleted after both."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
