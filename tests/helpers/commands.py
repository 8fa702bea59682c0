"""Running commands as a user does."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'OMP_NUM_THREADS': '1',
            'PYTHON': sys.executable,
            **environment,
        },
    )
