"""`spinsr app` before the page: its errors."""

import importlib.util
import socket
import sys
import types

import pytest

import spinsr.app
from spinsr import cli


def test_busy_port(capsys, monkeypatch):
    monkeypatch.setattr('spinsr.app.server.check_gradio', lambda: None)
    with socket.socket() as busy:
        busy.bind(('127.0.0.1', 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert cli.main(['app', '--port', str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f'127.0.0.1, port {port}' in line
    assert 'choose another --port' in line


def test_without_gradio(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert cli.main(['app']) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'spinsr[app]'" in line


def test_server_that_does_not_start(capsys, monkeypatch):
    def launch(**settings):
        raise OSError('Cannot find empty port in range: 7860-7860.')

    blocks = types.SimpleNamespace(launch=launch, close=lambda verbose: None)
    page = types.SimpleNamespace(build=lambda jobs: blocks, theme=lambda: None, CSS='')
    monkeypatch.setattr('spinsr.app.server.check_gradio', lambda: None)
    monkeypatch.setattr('spinsr.app.server.check_address', lambda host, port: None)
    monkeypatch.setattr(spinsr.app, 'page', page, raising=False)
    monkeypatch.setitem(sys.modules, 'spinsr.app.page', page)
    assert cli.main(['app', '--device', 'cpu']) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert '127.0.0.1, port 7860' in line
    assert 'did not start within 5 seconds' in line


@pytest.mark.parametrize('host', ['127.0.0.1', '0.0.0.0'])
def test_warns_where_others_can_reach_it(capsys, monkeypatch, host):
    from spinsr.app import server

    served = {}
    monkeypatch.setattr(server, 'check_gradio', lambda: None)
    monkeypatch.setattr(server, 'check_address', lambda host, port: None)
    monkeypatch.setattr(server, 'serve', lambda *address, started, **options: (started('URL'), served.update(options)))
    assert cli.main(['app', '--host', host, '--max-mb', '3', '--max-pixels', '7', '--device', 'cpu']) == 0
    assert (served['max_bytes'], served['max_pixels']) == (3 * 2**20, 7)
    assert ('no password' in capsys.readouterr().out) == (host == '0.0.0.0')
