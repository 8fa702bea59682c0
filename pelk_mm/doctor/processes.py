"""Runs the probes where a crash of theirs ends nothing but themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROBES_FILE = Path(__file__).with_name('probes.py')
#: Run by its path, so that pelk_mm is not imported; with `-c`, so that the
#: current folder is on the path as for `python -m` and probes.py's is not.
_START = (
    'import runpy, sys; sys.argv = sys.argv[1:]; '
    'runpy.run_path(sys.argv[0], run_name="__main__")'
)

#: What has to work for a probe to be worth a try.
NEEDS: dict[str, tuple[str, ...]] = {
    'numpy': (),
    'torch': (),
    'torch_numpy': ('numpy', 'torch'),
    'torch_cuda': ('torch',),
    'torchvision': ('torch',),
    'cv2': ('numpy',),
    'mmengine': ('torch', 'cv2'),
    'mmcv': ('mmengine',),
    'mmcv_ops': ('mmcv',),
    'mmpretrain': ('mmcv',),
    'mmseg': ('mmcv',),
    'mmdet': ('mmcv_ops',),
    'pelk_mm': ('torch', 'mmengine', 'mmcv'),
    # Knows torch alone, but is imported from within the package.
    'operator': ('pelk_mm',),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one probe.

    Args:
        state (str): ``'works'``, ``'absent'`` (not installed), ``'fails'``
            (an exception, a crash or no end) or ``'skipped'`` (something that
            it needs does not work).
        facts (dict): What it found, if it works.
        message (str): One line on why it does not.
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
    """Try everything in ``names``, in processes that may crash.

    As long as all goes well this takes one process; each that fails takes the
    process with it, and the rest goes on in a new one.

    Args:
        names (Sequence[str]): Keys of ``NEEDS``, what is needed before what
            needs it. Default: all.
        timeout (float): Seconds after which a process is taken to hang.
            The operator's backends may have to be compiled meanwhile.
            Default: 600.

    Returns:
        dict[str, Outcome]: One for each name.
    """
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(names):
        for name in names:
            lacking = [
                need
                for need in NEEDS[name]
                if need in outcomes and not outcomes[need].works
            ]
            if name not in outcomes and lacking:
                outcomes[name] = Outcome(
                    'skipped', message=f'{lacking[0]} does not work'
                )
        left = [name for name in names if name not in outcomes]
        if left:
            outcomes.update(_run(left, timeout))
    return {name: outcomes[name] for name in names}


def _run(names: list[str], timeout: float) -> dict[str, Outcome]:
    """Outcomes up to the first that is not good; at least one."""
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder, 'results'), Path(folder, 'errors')
        with errors.open('w') as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    '-W',
                    'ignore',
                    '-c',
                    _START,
                    str(PROBES_FILE),
                    str(results),
                    *names,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A compiler that it started has to end with it.
                start_new_session=True,
            )
            try:
                process.wait(timeout)
                ending = _ending(process.returncode)
            except subprocess.TimeoutExpired:
                ending = f'has not ended after {timeout:g} seconds'
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        said = errors.read_text(errors='replace').strip().splitlines()
        outcomes: dict[str, Outcome] = {}
        lines = results.read_text().splitlines() if results.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # cut off by the end of the process
                continue
            if entry['event'] == 'end':
                outcomes[entry['probe']] = Outcome('works', entry['facts'])
            elif entry['event'] == 'error':
                outcomes[entry['probe']] = _failure(entry)
    if all(outcome.works for outcome in outcomes.values()):
        rest = [name for name in names if name not in outcomes]
        if rest:
            last = f'; its last words: {said[-1]}' if said else ''
            outcomes[rest[0]] = Outcome('fails', message=ending + last)
    return outcomes


def _failure(entry: dict[str, Any]) -> Outcome:
    if entry['missing'] == entry['probe']:
        return Outcome('absent', message='it is not installed')
    lines = entry['message'].splitlines() or ['no message']
    # Long messages, such as a compiler's, say what it is at their ends.
    text = lines[0] if len(lines) == 1 else f'{lines[0]} … {lines[-1]}'
    return Outcome('fails', message=f'{entry["kind"]}: {text.strip()}')


def _ending(status: int) -> str:
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f'signal {-status}'
        return f'the process was ended by {name}'
    return f'the process ended with status {status}'
