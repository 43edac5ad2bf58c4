"""`spinsr app` before the page: its errors."""

import importlib.util
import socket

import pytest

from spinsr import cli


def test_busy_port(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
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
