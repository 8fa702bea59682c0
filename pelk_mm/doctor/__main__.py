"""Prints what an environment is made of and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..distributions import FAMILIES, installed, installed_families, providers
from ..version import __version__
from .checks import TROUBLE, Environment, Finding, examine
from .processes import run_probes

#: What is listed beside the two families.
_BASE = ('torch', 'torchvision', 'numpy')
_OPENCV = ('opencv-python', 'opencv-python-headless')
_LITE = ('mmengine-lite', 'mmcv-full', 'mmcv-lite')
_OTHERS = (
    'setuptools',
    'ftfy',
    'regex',
    'safetensors',
    'scikit-learn',
    'triton',
)
_DEPLOY = ('onnx', 'onnxscript', 'onnxruntime')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m pelk_mm.doctor',
        description=__doc__,
        epilog='Exit status: 0 if all is well, 1 if there is trouble.',
    )
    add = parser.add_argument
    add('--json', action='store_true', help='print JSON, for scripts')
    text = (
        f'only say whether the packages of {" or ".join(FAMILIES)} can be '
        'installed here without overwriting the files of others'
    )
    metavar = 'FAMILY'
    add('--has-room-for', metavar=metavar, choices=FAMILIES, help=text)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.has_room_for:
        return _has_room_for(args.has_room_for)
    text = 'trying what is installed, and compiling: up to some minutes'
    print(text, file=sys.stderr)
    environment = survey()
    found = report(environment, examine(environment))
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return 0 if found['ok'] else 1


def survey() -> Environment:
    """Look at the packages, the compiler and the driver; try the imports."""
    # As the C++ kernels choose it; it may be `ccache g++`.
    given = os.environ.get('CXX')
    compilers = [given] if given else ['c++', 'g++', 'clang++']
    said = [_lines(*shlex.split(name), '--version') for name in compilers]
    return Environment(
        packages=installed(),
        outcomes=run_probes(),
        compiler=next((lines[0] for lines in said if lines), None),
        gpus_of_driver=_lines('nvidia-smi', '-L'),
    )


def _lines(*command: str) -> list[str]:
    """What a program prints; nothing if it is absent or fails."""
    nothing = subprocess.DEVNULL
    try:
        text = subprocess.check_output(
            command, stdin=nothing, stderr=nothing, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return text.splitlines()


def report(
    environment: Environment, findings: list[Finding]
) -> dict[str, Any]:
    """What to print, as plain data; of backends, None or why not."""
    packages, facts = environment.packages, environment.facts
    names = [name for each in FAMILIES.values() for name in each.values()]
    listed = (*_BASE, *_OPENCV, *names, *_LITE, *_OTHERS, *_DEPLOY)
    there = [name for name in listed if name in packages]
    cuda = (('torch', 'torch'), ('mmcv', 'mmcv_ops'))
    return {
        'ok': all(finding.level != TROUBLE for finding in findings),
        'pelk_mm': __version__,
        'where': str(Path(__file__).parents[1]),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'family': installed_families(packages),
        'versions': {name: packages[name] for name in there},
        'compiler': environment.compiler,
        'cuda': {name: facts(probe).get('cuda') for name, probe in cuda},
        'gpus': facts('torch').get('gpus', []),
        'gpus_of_driver': environment.gpus_of_driver,
        'mmcv_ops': environment.works('mmcv_ops'),
        'library': facts('operator').get('library'),
        'backends': facts('operator').get('backends', {}),
        'findings': [vars(finding) for finding in findings],
    }


def as_text(found: dict[str, Any]) -> str:
    """The report as one reads it."""
    cuda = {name: said or 'without' for name, said in found['cuda'].items()}
    lines = [
        f'pelk_mm {found["pelk_mm"]} in {found["where"]}',
        f'Python {found["python"]}, {found["platform"]}',
        f'compiler: {found["compiler"] or "none"}',
        f'CUDA: torch {cuda["torch"]}, mmcv {cuda["mmcv"]}',
    ]
    for gpu in found['gpus']:
        what = 'GPU: {name}, capability {}.{}, {memory_gib} GiB'
        lines.append(what.format(*gpu['capability'], **gpu))
    if not found['gpus']:
        driver = len(found['gpus_of_driver'])
        lines.append(f'GPU: torch sees none, the driver {driver}')
    family = ' and '.join(found['family']) or 'neither family'
    lines += ['', f'packages, those of {family}']
    for name, version in found['versions'].items():
        lines.append(f'  {name:24}{version}')
    lines += ['', f'mmcv.ops: {"run" if found["mmcv_ops"] else "do not run"}']
    text = 'C++ kernels: not loaded, see below'
    if library := found['library']:
        text = f'C++ kernels: {library["instruction_set"]}, {library["path"]}'
    lines.append(text)
    for device, backends in found['backends'].items():
        lines += ['', f'operator backends on {device}']
        for name, reason in backends.items():
            lines.append(f'  {name:10}{"runs" if reason is None else reason}')
    for finding in found['findings']:
        label = 'ERROR' if finding['level'] == TROUBLE else 'note'
        lines += ['', f'{label} {finding["check"]}: {finding["text"]}']
        lines.append(f'  -> {finding["advice"]}')
    lines += ['', 'no trouble found' if found['ok'] else 'there is trouble']
    return '\n'.join(lines)


def _has_room_for(wanted: str) -> int:
    """Before an installation: nothing but metadata is looked at."""
    others = []
    for found in providers(installed()).values():
        for family, names in found.items():
            others += names if family != wanted else []
    if others:
        text = (
            f'the packages of {wanted} would overwrite the files of '
            f'{", ".join(others)}, which are installed here; use another '
            'environment'
        )
        print(text, file=sys.stderr)
    return 1 if others else 0


if __name__ == '__main__':
    sys.exit(main())
