"""Build mmcv with its compiled operators for the torch here, and install it.

PyPI has mmcv as source only. This is ``MMCV_WITH_OPS=1 pip install
--no-build-isolation mmcv``, and what that needs besides: the C++ standard of
this torch, a ``setup.py`` that runs with Python 3.13, no build from pip's
cache that was made for another torch. torch's headers are compiled once, which
makes it take a third of the time. mmcv-lite, which has the same files, goes.

CXX names another C++ compiler than c++. FORCE_CUDA=1 builds for GPUs where
none is visible, TORCH_CUDA_ARCH_LIST=9.0 for some only, MAX_JOBS=2 saves
memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import deque
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = ['setuptools>=77,<81', 'wheel', 'ninja', 'psutil']
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
COMPILED = re.compile(r'^ *(\[\d+/\d+\]) ')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'wanted',
        nargs='?',
        default='mmcv<2.2',
        help='as for pip: mmcv==2.1.0 or onedl-mmcv (default %(default)s)',
    )
    parser.add_argument(
        '--log', type=Path, help='append all that pip says to this file'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not importlib.util.find_spec('torch'):
        sys.exit(
            'error: there is no torch, which mmcv is built for; install it '
            'first: pip install torch torchvision'
        )
    run([*PIP, 'install', *TOOLS], args.log)
    environment = {**os.environ, **variables()}
    # What is in pip's cache may be for the CPU alone, or for another torch.
    tries = [['--no-cache-dir']]
    if not for_gpus():
        tries.insert(0, [])
    for options in tries:
        if options and len(tries) > 1:
            print("pip's cache has it for another torch, or without operators")
        with tempfile.TemporaryDirectory() as folder:
            build = [*PIP, 'wheel', '-v', '--no-build-isolation', '--no-deps']
            build += [*options, '-w', folder, args.wanted]
            run(build, args.log, environment)
            (wheel,) = Path(folder).iterdir()
            install(wheel, args.log)
        if operators_run():
            print('mmcv with its operators is installed')
            return
    sys.exit(
        'error: mmcv was built and installed, but its operators do not run: '
        'python -c "import torch, mmcv._ext"'
    )


def variables() -> dict[str, str]:
    """What makes the ``setup.py`` of mmcv do it."""
    import torch

    built = re.search(r'C\+\+ Version: 20(\d\d)', torch.__config__.show())
    standard = f'-std=c++{built[1]}' if built else ''
    return {
        'MMCV_WITH_OPS': '1',
        'MMCV_CXX': os.environ.get('CXX', 'c++'),
        'CXX': str(HERE / 'cxx.sh'),
        'CXX_APPEND_FLAGS': f'{standard} -g0',
        'NVCC_APPEND_FLAGS': joined(' ', 'NVCC_APPEND_FLAGS', standard),
        'PYTHONPATH': joined(os.pathsep, 'PYTHONPATH', str(HERE)),
        # The build looks for ninja there.
        'PATH': os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ['PATH']]
        ),
    }


def for_gpus() -> bool:
    """What that ``setup.py`` asks."""
    import torch

    return torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'


def joined(separator: str, name: str, last: str) -> str:
    return separator.join(filter(None, [os.environ.get(name), last]))


def install(wheel: Path, log: Path | None) -> None:
    if any(found.metadata['Name'] == 'mmcv-lite' for found in distributions()):
        run([*PIP, 'uninstall', '-y', 'mmcv-lite'], log)
    command = [*PIP, 'install', '--no-deps', '--force-reinstall', str(wheel)]
    run(command, log)


def operators_run() -> bool:
    command = [sys.executable, '-c', 'import torch, mmcv._ext']
    return not subprocess.run(command, capture_output=True).returncode


def run(
    command: list[str],
    log: Path | None,
    environment: dict[str, str] | None = None,
) -> None:
    """Say how far it has come; what it printed last, where it fails."""
    last: deque[str] = deque(maxlen=30)
    with (
        open(log or os.devnull, 'a') as file,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            file.write(line)
            if compiled := COMPILED.match(line):
                print('  compiled', compiled[1], flush=True)
    if process.returncode:
        sys.stderr.writelines(last)
        sys.exit(f'error: this failed, see above: {shlex.join(command)}')


if __name__ == '__main__':
    main()
