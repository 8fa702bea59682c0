"""Collects what the doctor knows about an environment."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path
from runpy import run_path
from typing import Any

from ..distributions import ROWS, installed, installed_rows
from .checks import TROUBLE, Environment, Finding
from .processes import run_probes

#: What is listed beside the rows, in the order of printing.
_PACKAGES = (
    'torch',
    'torchvision',
    'numpy',
    'opencv-python',
    'opencv-python-headless',
)
_OPTIONAL = (
    'setuptools',
    'ftfy',
    'regex',
    'onnx',
    'onnxscript',
    'onnxruntime',
    'scikit-learn',
    'triton',
)


def survey() -> Environment:
    """Look at the packages, the compiler and the driver; try the imports."""
    return Environment(
        packages=installed(),
        outcomes=run_probes(),
        # As torch's extensions choose it; it may be `ccache g++`.
        compiler=_first_line(
            *shlex.split(os.environ.get('CXX') or 'c++'), '--version'
        ),
        gpus_of_driver=_lines('nvidia-smi', '-L'),
    )


def report(
    environment: Environment, findings: list[Finding]
) -> dict[str, Any]:
    """Everything that is worth printing, as plain data.

    Returns:
        dict[str, Any]: ``ok``; ``pelk_mm``, ``python`` and ``platform``;
        ``row``, the names of the rows that are installed; ``versions`` by
        distribution; ``compiler``; ``gpus``; ``backends`` by device, None or
        why one does not run; ``findings``.
    """

    def facts(probe: str) -> dict[str, Any]:
        return (
            environment.outcomes[probe].facts
            if environment.works(probe)
            else {}
        )

    packages = environment.packages
    return {
        'ok': all(finding.level != TROUBLE for finding in findings),
        'pelk_mm': run_path(str(Path(__file__).parents[1] / 'version.py'))[
            '__version__'
        ],
        'where': str(Path(__file__).parents[1]),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'row': installed_rows(packages),
        'versions': {name: packages[name] for name in _names(packages)},
        'compiler': environment.compiler,
        'cuda': {
            'torch': facts('torch').get('cuda'),
            'mmcv': facts('mmcv_ops').get('cuda'),
        },
        'gpus': facts('torch').get('gpus', []),
        'gpus_of_driver': environment.gpus_of_driver,
        'mmcv_ops': environment.works('mmcv_ops'),
        'backends': facts('operator').get('backends', {}),
        'findings': [vars(finding) for finding in findings],
    }


def _names(packages: dict[str, str]) -> list[str]:
    wanted = [
        *_PACKAGES,
        *(name for row in ROWS.values() for name in row.values()),
        'mmengine-lite',
        'mmcv-full',
        'mmcv-lite',
        *_OPTIONAL,
    ]
    return [name for name in wanted if name in packages]


def _lines(*command: str) -> list[str]:
    """What a program prints; nothing if it is absent or fails."""
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            text=True,
            capture_output=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _first_line(*command: str) -> str | None:
    return next(iter(_lines(*command)), None)
