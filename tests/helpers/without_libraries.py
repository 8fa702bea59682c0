"""Python processes in which libraries cannot be imported."""

import os
import subprocess
import sys
import textwrap

from tests.conftest import ROOT

DENY = """
    import sys

    class Deny:
        def find_spec(self, name, path=None, target=None):
            if name.split('.')[0] in {absent!r}:
                raise ModuleNotFoundError(name, name=name)

    sys.meta_path.insert(0, Deny())
"""
LIBRARIES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def run_without(
    code: str, absent: tuple[str, ...] = LIBRARIES
) -> subprocess.CompletedProcess:
    """Run a program that does not find these packages."""
    code = textwrap.dedent(DENY).format(absent=absent) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
