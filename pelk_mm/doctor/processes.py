"""Runs the probes where a crash of theirs ends nothing but themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import probes
from .probes import MORE, NEEDS

#: Run by its path, so that pelk_mm is not imported; with `-c`, so that the
#: current folder is on the path as for `python -m` and probes.py's is not.
_START = (
    'import runpy, sys; sys.argv = sys.argv[1:]; '
    'runpy.run_path(sys.argv[0], run_name="__main__")'
)


@dataclass(frozen=True)
class Outcome:
    """What became of one probe, with one line on why it does not work.

    ``state`` is ``'works'``, ``'absent'`` (not installed), ``'fails'``
    (an exception, a crash or no end) or ``'skipped'`` (something that it
    needs does not work).
    """

    state: str
    facts: dict[str, Any] = field(default_factory=dict)
    message: str = ''

    @property
    def works(self) -> bool:
        return self.state == 'works'


def run_probes(
    names: Sequence[str] = tuple(NEEDS), timeout: float = 600
) -> dict[str, Outcome]:
    """Try keys of ``NEEDS`` in their order, in processes that may crash.

    As long as all goes well this takes one process; each that fails takes the
    process with it, and the rest goes on in a new one. After ``timeout``
    seconds it is taken to hang; backends may have to be compiled meanwhile.
    """
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(names):
        for name in names:
            tried = [need for need in NEEDS[name] if need in outcomes]
            lacking = [need for need in tried if not outcomes[need].works]
            if name not in outcomes and lacking:
                outcomes[name] = _untried(name, lacking[0])
        left = [name for name in names if name not in outcomes]
        if left:
            outcomes.update(_run(left, timeout))
    return {name: outcomes[name] for name in names}


def _untried(name: str, lacking: str) -> Outcome:
    """That it is absent can be said without what it needs, too."""
    if name not in MORE and find_spec(name) is None:
        return Outcome('absent', message='it is not installed')
    return Outcome('skipped', message=f'{lacking} does not work')


def _run(names: list[str], timeout: float) -> dict[str, Outcome]:
    """Outcomes up to the first that is not good; at least one."""
    with tempfile.TemporaryDirectory() as folder:
        results, said = Path(folder, 'results'), Path(folder, 'said')
        python = [sys.executable, '-W', 'ignore', '-c', _START]
        with said.open('w') as output:
            process = subprocess.Popen(
                [*python, probes.__file__, str(results), *names],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A compiler that it started has to end with it.
                start_new_session=True,
            )
            try:
                ending = _ending(process.wait(timeout))
            except subprocess.TimeoutExpired:
                ending = f'has not ended after {timeout:g} seconds'
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        words = said.read_text(errors='replace').strip().splitlines()
        lines = results.read_text().splitlines() if results.exists() else []
    outcomes: dict[str, Outcome] = {}
    for line in lines:
        with suppress(json.JSONDecodeError):  # cut off by the process's end
            name, fields = json.loads(line)
            outcomes[name] = Outcome(**fields)
    rest = [name for name in names if name not in outcomes]
    if rest and all(outcome.works for outcome in outcomes.values()):
        last = f'; its last words: {words[-1]}' if words else ''
        outcomes[rest[0]] = Outcome('fails', message=ending + last)
    return outcomes


def _ending(status: int) -> str:
    if status >= 0:
        return f'the process ended with status {status}'
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f'signal {-status}'
    return f'the process was ended by {name}'
