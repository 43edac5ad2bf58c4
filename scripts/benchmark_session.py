"""The worker processes of benchmark.py: run in turns, compared with each other, their multiply-adds counted."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Not torch: on Linux a new process starts with the peak memory of the process that made it.
import numpy as np

WORKER = Path(__file__).with_name('benchmark_worker.py')
# OpenMP's threads go on looking for work some milliseconds after a run. With these settings they could do so for ever,
# in processes that are not being timed; without them all backends have the same defaults.
SPIN_SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')
SETTLE = 0.3  # seconds between runs, longer than the threads of any OpenMP look for work by default
# Largest differences; see `disagreements`.
OUTPUT_LIMITS = {'float32': 1e-5, 'float64': 1e-9}
GRADIENT_LIMITS = {'float32': 1e-2, 'float64': 1e-9}


class WorkerError(Exception):
    """A worker failed; says why in one line."""


class RefusedError(WorkerError):
    """A worker refused the arguments."""


class Worker:
    """One process of benchmark_worker.py.

    Args:
        settings: What the worker is made with.
        backend: Its SPINSR_OPS_BACKEND.
    """

    def __init__(self, settings: Mapping[str, Any], backend: str = 'auto'):
        env = {name: value for name, value in os.environ.items() if name not in SPIN_SETTINGS}
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**env, 'SPINSR_OPS_BACKEND': backend},
            # Ctrl-C reaches this process alone, which then ends the workers.
            start_new_session=True,
        )
        self._send(settings)

    def facts(self) -> dict[str, Any]:
        """Waits until the worker is made; what it says of itself."""
        return self._receive()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Has a command done and returns the answer.

        Raises:
            WorkerError: The worker answered with an error, or ended.
        """
        self._send({'do': command, **arguments})
        return self._receive()

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdout, self._stderr):
            file.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _send(self, command: Mapping[str, Any]) -> None:
        # A worker that is gone is noticed when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command) + '\n')
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._epitaph())
        answer = json.loads(line)
        if 'error' in answer:
            raise (RefusedError if answer['refused'] else WorkerError)(answer['error'])
        return answer

    def _epitaph(self) -> str:
        status = self._process.wait()
        if status < 0:
            hint = ': out of memory?' if -status == signal.SIGKILL else ''
            return f'killed by signal {-status}{hint}'
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors='replace').strip().splitlines()
        return f'ended with status {status}' + (f': {lines[-1]}' if lines else '')


class Check(NamedTuple):
    """A rule for two backends, how far they are from each other, and whether that is within the limit."""

    rule: str
    value: float
    limit: float
    holds: bool


def disagreements(base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], dtype: str) -> list[Check]:
    """Compares the outputs of two backends in [0, 1], and the gradients if there are any.

    In float32 near-ties may swap single pixels among the top N, which moves few values and these visibly: the mean
    counts. In float64 the maximum does. The gradient of each parameter is compared relative to its own size, or to a
    hundredth of the mean size of all where it is smaller than that: what cancels to nearly nothing is rounding
    error alone.

    Args:
        base: 'output', and 'gradient NAME' for each parameter; all finite.
        other: The same of the other backend.
        dtype: In which both were computed.
    """
    mean_counts = dtype == 'float32'
    measure, word = (np.mean, 'mean') if mean_counts else (np.max, 'largest')

    def check(rule: str, value: float, limit: float) -> Check:
        return Check(rule, value, limit, bool(value <= limit if mean_counts else value < limit))

    value = float(measure(np.abs(difference(base, other, 'output'))))
    checks = [check(f'{word} |difference| of the outputs', value, OUTPUT_LIMITS[dtype])]
    gradients = sorted(name for name in {*base, *other} if name != 'output')
    if gradients:
        sizes = {name: float(measure(np.abs(base[name]))) if name in base else 0.0 for name in gradients}
        least = 1e-2 * float(measure(list(sizes.values()))) or 1.0
        values = {
            name: float(measure(np.abs(difference(base, other, name)))) / max(sizes[name], least) for name in gradients
        }
        worst = max(values, key=lambda name: math.inf if math.isnan(values[name]) else values[name])
        rule = f'{word} |difference| of the {worst}, relative'
        checks.append(check(rule, values[worst], GRADIENT_LIMITS[dtype]))
    return checks


def difference(base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in base or name not in other or base[name].shape != other[name].shape:
        return np.array([math.inf])
    # Two infinities give nan, which is within no limit.
    with np.errstate(invalid='ignore'):
        return base[name] - other[name]


class Session:
    """The workers of one benchmark and what they measured; one that fails is left out from then on.

    Args:
        workers: By backend.
        gauge: Measures the matmul rate.
    """

    def __init__(self, workers: Mapping[str, Worker], gauge: Worker):
        self.workers = dict(workers)
        self.gauge = gauge
        self.failed: dict[str, str] = {}
        self.baseline: dict[str, int] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        self.matmul_rates: list[float] = []

    def run(self, repeats: int) -> None:
        """Runs all backends once uncounted, then in turns, with the matmul rate measured between the rounds."""
        for name in list(self.workers):
            with self.survived(name):
                self.baseline[name] = self.workers[name].facts()['baseline_rss_bytes']
        for i in range(-1, repeats):
            # To and fro: what grows slower with time does not fall on the same backend every time.
            for name in list(self.workers)[:: 1 if i % 2 else -1]:
                progress(f'{name}: ' + ('warm-up' if i < 0 else f'run {i + 1} of {repeats}'))
                with self.survived(name):
                    run = self.workers[name].ask('run')
                    self.runs[name] += [run] if i >= 0 else []
                time.sleep(SETTLE)
            gauged = self.gauge.ask('measure')
            self.matmul_rates += [gauged['macs'] / seconds for seconds in gauged['seconds']]
            time.sleep(SETTLE)

    def agreement(self, base: str, dtype: str) -> dict[str, list['Check']]:
        """How far the last run of each backend is from that of the base."""
        progress('comparing')
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for name in list(self.workers):
                with self.survived(name):
                    path = Path(folder, f'{name}.npz')
                    self.workers[name].ask('save', path=str(path))
                    paths[name] = path
            if base not in paths:
                return {}
            with contextlib.ExitStack() as stack:
                arrays = {name: stack.enter_context(np.load(path)) for name, path in paths.items()}
                return {name: disagreements(arrays[base], x, dtype) for name, x in arrays.items() if name != base}

    def count(self) -> dict[str, dict[str, Any]]:
        """Multiply-adds of a run of each backend, or why they are not known."""
        counts = {}
        for name, worker in self.workers.items():
            progress(f'{name}: counting multiply-adds')
            try:
                counts[name] = worker.ask('count')
            except WorkerError as error:  # the measurements are complete and stand
                counts[name] = {'macs': None, 'why': str(error)}
        return counts

    @contextlib.contextmanager
    def survived(self, name: str) -> Iterator[None]:
        """Leaves a backend out when its worker fails in the with block."""
        try:
            yield
        except WorkerError as error:
            self.failed[name] = str(error)
            self.workers.pop(name).stop()


def base_of(backends: Sequence[str]) -> str:
    """The backend that the others are compared with."""
    return 'reference' if 'reference' in backends else backends[0]


def progress(text: str = '') -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)
