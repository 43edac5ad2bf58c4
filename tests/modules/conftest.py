"""The backends that modules are tested with."""

import pytest


@pytest.fixture(params=['reference', 'torch'])
def backend(request, monkeypatch):
    monkeypatch.setenv('SPINSR_OPS_BACKEND', request.param)
    return request.param
