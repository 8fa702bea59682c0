"""The tests of what computes hold wherever and in whatever order they run."""

import os
import subprocess
import sys

import pytest

from pelk_mm.ops.backends import cpp_build


@pytest.mark.slow
@pytest.mark.parametrize('part', ['ops', 'models', 'engine'])
def test_any_order_place_locale_and_home(part, root, tmp_path):
    """Minutes: everything in ``tests/<part>`` that is not slow itself."""
    home = tmp_path / 'home'
    home.write_text('')  # not a folder: stops root from writing too
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider']
    options = ['-m', 'not slow and not gpu', '--shuffle=1']
    done = subprocess.run(
        [*command, *options, str(root / 'tests' / part)],
        cwd=elsewhere,
        env={
            **os.environ,
            'HOME': str(home),
            'LC_ALL': 'C',
            'OMP_NUM_THREADS': '1',
            'PYTHONCOERCECLOCALE': '0',
            'PYTHONPATH': str(root),
            'PYTHONUTF8': '0',
            # What is compiled has to go somewhere.
            'XDG_CACHE_HOME': str(cpp_build.cache_root().parent),
            'TRITON_CACHE_DIR': str(tmp_path / 'triton'),
        },
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-5000:]
