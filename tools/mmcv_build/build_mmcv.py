"""Build mmcv with its compiled operators for the torch here, and install it.

PyPI has mmcv as source only. This is ``MMCV_WITH_OPS=1 pip install
--no-build-isolation mmcv``, and what that needs besides: the C++ standard of
this torch, a ``setup.py`` that runs with Python 3.13, no build from pip's
cache that was made for another torch. torch's headers are compiled once, which
makes it take a third of the time. mmcv-lite, which has the same files, goes.

Where torch sees a GPU the operators are built for it, with an nvcc from PyPI
if there is none of torch's CUDA version. FORCE_CUDA=1 does so where no GPU is
visible, TORCH_CUDA_ARCH_LIST=9.0 for some GPUs only. MAX_JOBS=2 saves memory,
CXX names another C++ compiler than c++.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = ['setuptools>=77,<81', 'wheel', 'ninja', 'psutil']
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
#: What of CUDA a build needs that does not come with torch.
NVCC_PARTS = 'cuda-nvcc', 'nvvm', 'cuda-crt', 'cuda-cccl', 'cuda-runtime'
FIRST_ON_PYPI = 13
FOR_CPUS = {'FORCE_CUDA': '0', 'CUDA_VISIBLE_DEVICES': ''}
ADVICE = (
    "for GPUs install NVIDIA's toolkit of that version, or a torch for CUDA 13"
)
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
    with tempfile.TemporaryDirectory() as folder:
        found = for_cuda(Path(folder), args.log) if for_gpus() else None
        environment = {**os.environ, **variables()}
        environment |= FOR_CPUS if found is None else found
        # What is in pip's cache may be for the CPU alone, or another torch.
        tries = [['--no-cache-dir']]
        if found is None:
            tries.insert(0, [])
        for options in tries:
            if options and len(tries) > 1:
                print(
                    "pip's cache has it for another torch, or has no operators"
                )
            build(args.wanted, options, environment, args.log)
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


def for_cuda(folder: Path, log: Path | None) -> dict[str, str] | None:
    """What it needs besides where it builds for GPUs; None if it cannot.

    An nvcc of torch's CUDA version is taken from PyPI into ``folder`` if there
    is none here. PyPI has it from CUDA 13 on.
    """
    import torch

    if torch.version.hip:
        return {}
    wanted, here = torch.version.cuda, nvcc_version()
    if wanted is None:
        sys.exit(
            'error: FORCE_CUDA=1 asks for operators that run on GPUs, but '
            f'torch {torch.__version__} here is without CUDA'
        )
    found = {}
    major = wanted.split('.')[0]
    if here is None or here[0] != major:
        why = f'that here is for {".".join(here)}' if here else 'none is here'
        why = f'torch needs an nvcc of CUDA {wanted}, {why}'
        if int(major) < FIRST_ON_PYPI:
            if os.environ.get('FORCE_CUDA') == '1':
                sys.exit(f'error: {why}; {ADVICE}')
            print(f'warning: {why}: the operators will run on CPUs; {ADVICE}')
            return None
        print(f'{why}: one comes from PyPI, for this build alone')
        found['CUDA_HOME'] = str(get_nvcc(wanted, folder, log))
    # torch's headers include those of libraries that a small toolkit, which
    # is little more than nvcc, does not have. They came with torch.
    headers = chain(*(Path(place).glob('*/include') for place in nvidia()))
    if headers := sorted(map(str, headers)):
        found['CPATH'] = joined(os.pathsep, 'CPATH', *headers)
    return found


def nvcc_version() -> tuple[str, str] | None:
    """Of the one that torch's extensions are built with; None without."""
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)
    from torch.utils.cpp_extension import CUDA_HOME

    try:
        command = [Path(CUDA_HOME or '', 'bin', 'nvcc'), '--version']
        text = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return None
    version = re.search(r'release (\d+)\.(\d+)', text)
    return (version[1], version[2]) if version else None


def get_nvcc(version: str, folder: Path, log: Path | None) -> Path:
    """A toolkit with nvcc and little more, from PyPI into a folder."""
    wanted = [f'nvidia-{part}=={version}.*' for part in NVCC_PARTS]
    options = '--no-deps', '--target', str(folder)
    run([*PIP, 'install', *options, *wanted], log)
    (home,) = folder.glob('nvidia/cu*')
    # As extensions are linked.
    (home / 'lib64').symlink_to('lib')
    for library in home.glob('lib/libcudart.so.*'):
        library.with_name('libcudart.so').symlink_to(library.name)
    return home


def nvidia() -> Iterable[str]:
    """Folders that the CUDA libraries of torch are in."""
    spec = importlib.util.find_spec('nvidia')
    return (spec and spec.submodule_search_locations) or ()


def joined(separator: str, name: str, *more: str) -> str:
    return separator.join(filter(None, [os.environ.get(name), *more]))


def build(
    wanted: str,
    options: list[str],
    environment: dict[str, str],
    log: Path | None,
) -> None:
    """Build a wheel and install it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*PIP, 'wheel', '-v', '--no-build-isolation', '--no-deps']
        run([*command, *options, '-w', folder, wanted], log, environment)
        (wheel,) = Path(folder).iterdir()
        install(wheel, log)


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
