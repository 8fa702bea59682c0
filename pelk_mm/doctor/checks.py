"""What the facts about an environment mean, and what to do about it.

Every check is a function of :class:`Environment` alone that yields
:class:`Finding`; ``CHECKS`` lists them. A check that raises becomes a finding
itself and stops no other.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..distributions import ROWS, installed_rows, providers
from .processes import Outcome

TROUBLE = 'trouble'
NOTE = 'note'
#: Oldest and newest Python that is tested, and the first that cannot be used.
_PYTHONS = ((3, 10), (3, 12))
_LIMIT = re.compile(
    r'^(mmcv|mmengine)_?(min|max)\w*\s*=\s*[\'"]([^\'"]+)[\'"]',
    re.IGNORECASE | re.MULTILINE,
)
_INSTALL = 'make install builds an environment that works'


@dataclass(frozen=True)
class Finding:
    """Something that somebody should know.

    Args:
        check (str): What it is about.
        level (str): ``'trouble'``, or ``'note'`` for what may be intended.
        text (str): What was found.
        advice (str): One line on what to do.
    """

    check: str
    level: str
    text: str
    advice: str


@dataclass(frozen=True)
class Environment:
    """All that is known about an environment.

    Args:
        packages (dict[str, str]): Versions by normalised distribution name.
        outcomes (dict[str, Outcome]): What the probes found.
        compiler (str | None): First line of the C++ compiler's ``--version``,
            None if there is none.
        gpus_of_driver (list[str]): GPUs that the driver lists.
        python (tuple[int, int]): Default: the running one.
    """

    packages: dict[str, str]
    outcomes: dict[str, Outcome]
    compiler: str | None
    gpus_of_driver: list[str] = field(default_factory=list)
    python: tuple[int, int] = sys.version_info[:2]

    def works(self, probe: str) -> bool:
        return probe in self.outcomes and self.outcomes[probe].works

    def facts(self, probe: str) -> dict[str, Any]:
        """What a probe found; nothing if it does not work."""
        return self.outcomes[probe].facts if self.works(probe) else {}

    def row(self) -> str:
        """The row that is installed; the first of them if none is."""
        return (installed_rows(self.packages) or list(ROWS))[0]


def examine(environment: Environment) -> list[Finding]:
    """All findings, troubles first."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(environment)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name
            found.append(
                Finding(
                    check.__name__,
                    TROUBLE,
                    'this check itself failed: '
                    f'{type(error).__name__}: {error}',
                    f'pip install {missing}'
                    if missing
                    else 'please report it',
                )
            )
    return sorted(found, key=lambda finding: finding.level != TROUBLE)


def python(environment: Environment) -> Iterator[Finding]:
    version = environment.python
    if not _PYTHONS[0] <= version <= _PYTHONS[1]:
        yield Finding(
            'python',
            TROUBLE if version < _PYTHONS[0] else NOTE,
            f'this is Python {version[0]}.{version[1]}, tested are 3.10 to '
            '3.12',
            'PYTHON=python3.12 make install',
        )


def forks(environment: Environment) -> Iterator[Finding]:
    """Two distributions that bring the same files."""
    clash = False
    for module, rows in providers(environment.packages).items():
        names = [name for found in rows.values() for name in found]
        if len(names) > 1:
            clash = True
            yield Finding(
                module,
                TROUBLE,
                f'{" and ".join(names)} are both installed: their files '
                'overwrite each other',
                f'pip uninstall -y {" ".join(names)}, then install one of '
                'them again',
            )
    rows = installed_rows(environment.packages)
    if len(rows) > 1 and not clash:
        yield Finding(
            'rows',
            NOTE,
            f'packages of {" and ".join(rows)} are mixed, which is not tested',
            'install all of them from one file of requirements/',
        )


def opencv(environment: Environment) -> Iterator[Finding]:
    """Its builds share their files: harmless while they are of one version."""
    found = sorted(
        name
        for name in environment.packages
        if re.fullmatch(r'opencv(-contrib)?-python(-headless)?', name)
    )
    if len({environment.packages[name] for name in found}) > 1:
        yield Finding(
            'cv2',
            TROUBLE,
            f'{" and ".join(found)} are installed in different versions, and '
            'their files overwrite each other',
            f'pip uninstall -y {" ".join(found)}, then install '
            'opencv-python, or opencv-python-headless where there is no libGL',
        )


def limits(environment: Environment) -> Iterator[Finding]:
    """The versions of mmcv and mmengine that each library accepts."""
    for module in ('mmpretrain', 'mmseg', 'mmdet'):
        for needed, low, high in declared_limits(module):
            row = providers(environment.packages)[needed]
            for names in row.values():
                # mmcv and mmengine bring it.
                from packaging.version import Version

                have = environment.packages[names[0]]
                if not Version(low) <= Version(have) < Version(high):
                    yield Finding(
                        module,
                        TROUBLE,
                        f'it accepts {needed} >= {low}, < {high} and refuses '
                        f'to be imported with {names[0]} {have}',
                        _reinstall(environment, needed),
                    )


def declared_limits(module: str) -> list[tuple[str, str, str]]:
    """Read a library's limits without importing it.

    Args:
        module (str): Its import name.

    Returns:
        list[tuple[str, str, str]]: Of each package that it names: import
        name, lowest version, and the version below which it must be. Empty
        if the library is not there or names none.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return []
    text = Path(spec.origin).read_text(encoding='utf-8', errors='replace')
    found: dict[str, dict[str, str]] = {}
    for needed, bound, version in _LIMIT.findall(text):
        found.setdefault(needed.lower(), {})[bound.lower()] = version
    return [
        (needed, bounds['min'], bounds['max'])
        for needed, bounds in found.items()
        if len(bounds) == 2
    ]


def torch_and_torchvision(environment: Environment) -> Iterator[Finding]:
    """A torchvision is built for exactly one torch."""
    torch = environment.packages.get('torch')
    if torch is None or 'torchvision' not in environment.packages:
        return
    from packaging.requirements import Requirement

    advice = (
        'pip install -r requirements/torch.txt, or the torchvision '
        'that goes with your torch'
    )
    for line in requires('torchvision') or ():
        requirement = Requirement(line)
        if requirement.name == 'torch' and not requirement.specifier.contains(
            torch, prereleases=True
        ):
            yield Finding(
                'torchvision',
                TROUBLE,
                f'torchvision {environment.packages["torchvision"]} is built '
                f'for torch {requirement.specifier}, torch {torch} is '
                'installed',
                advice,
            )
            return
    tags = [
        environment.packages[name].partition('+')[2]
        for name in ('torch', 'torchvision')
    ]
    if all(tags) and tags[0] != tags[1]:
        yield Finding(
            'torchvision',
            TROUBLE,
            f'torch is built for {tags[0]}, torchvision for {tags[1]}',
            advice,
        )


def undeclared(environment: Environment) -> Iterator[Finding]:
    """mmsegmentation imports these; the fork says so, the original not."""
    names = [
        name for name in ('ftfy', 'regex') if name not in environment.packages
    ]
    if names and 'mmsegmentation' in environment.packages:
        yield Finding(
            'mmseg',
            TROUBLE,
            f'mmsegmentation needs {" and ".join(names)}, which it does not '
            'install',
            f'pip install {" ".join(names)}',
        )


def probes(environment: Environment) -> Iterator[Finding]:
    """What could not be imported or run."""
    for name, outcome in environment.outcomes.items():
        what = name.replace('_', '.') if name == 'mmcv_ops' else name
        if outcome.state == 'fails':
            yield Finding(
                what,
                TROUBLE,
                outcome.message,
                _advice(environment, name, outcome.message),
            )
        elif outcome.state == 'absent' and name in _REQUIRED:
            yield Finding(
                what, TROUBLE, outcome.message, _reinstall(environment, name)
            )
        elif outcome.state == 'absent':
            yield Finding(
                what,
                NOTE,
                outcome.message,
                f'{_reinstall(environment, name)}, if its models are wanted',
            )


def gpu(environment: Environment) -> Iterator[Finding]:
    if not environment.works('torch'):
        return
    facts = environment.outcomes['torch'].facts
    if environment.gpus_of_driver and not facts['gpus']:
        text = (
            f'the driver lists {environment.gpus_of_driver[0]}, torch '
            'sees no GPU'
        )
        if facts['cuda'] is None:
            yield Finding(
                'gpu',
                NOTE,
                f'{text}: it is built without CUDA',
                'install a torch that is built with CUDA',
            )
        else:
            yield Finding(
                'gpu',
                TROUBLE,
                f'{text}, built for CUDA {facts["cuda"]}',
                'look at CUDA_VISIBLE_DEVICES, and whether the driver is new '
                'enough for that CUDA',
            )
    if (
        facts['gpus']
        and environment.works('mmcv_ops')
        and (environment.outcomes['mmcv_ops'].facts['cuda'] is None)
    ):
        yield Finding(
            'mmcv.ops',
            TROUBLE,
            'mmcv was built without CUDA, so detectors do not run on the GPU',
            f'FORCE_CUDA=1 {_build_mmcv(environment)}',
        )


def backends(environment: Environment) -> Iterator[Finding]:
    """Only slow backends left, or wrong results."""
    if not environment.works('operator'):
        return
    found = environment.outcomes['operator'].facts['backends']
    for device, fast in (('cpu', 'cpp'), ('cuda', 'triton')):
        reason = found.get(device, {}).get(fast)
        if reason is None:
            continue
        advice = 'python -m pelk_mm.ops.backends shows the whole failure'
        if fast == 'cpp' and environment.compiler is None:
            advice = 'install a C++ compiler (on Debian: apt-get install g++)'
        elif fast == 'triton':
            advice = 'another backend is used, many times slower'
        yield Finding(
            f'backend {fast}',
            TROUBLE if fast == 'cpp' else NOTE,
            f'it does not run on {device}: {reason}',
            advice,
        )


CHECKS: tuple[Callable[[Environment], Iterator[Finding]], ...] = (
    python,
    forks,
    torch_and_torchvision,
    limits,
    undeclared,
    opencv,
    probes,
    gpu,
    backends,
)
#: Probes without which nothing of pelk_mm works.
_REQUIRED = ('numpy', 'torch', 'cv2', 'mmengine', 'mmcv')
#: What a message of a probe is known to mean: probes, pattern, advice.
_KNOWN: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ('cv2', 'mmengine', 'mmcv'),
        r'libGL|libgthread|libxcb',
        'pip uninstall -y opencv-python; pip install opencv-python-headless, '
        'or apt-get install libgl1',
    ),
    (('mmcv_ops',), r'mmcv\._ext', '{build}'),
    (
        ('mmcv_ops', 'mmdet'),
        r'undefined symbol|libtorch|libc10|libcuda|\.so',
        'mmcv was built for another torch: {build}',
    ),
    (
        ('torch_numpy',),
        '',
        'this torch was built for another numpy: install numpy as '
        'requirements/constraints.txt names it',
    ),
    (
        ('torchvision',),
        r'torchvision::|undefined symbol|\.so',
        'torchvision was built for another torch: pip install -r '
        'requirements/torch.txt',
    ),
    (
        ('torch_cuda',),
        '',
        'this torch has no kernels for this GPU or driver: install a torch '
        'for its CUDA',
    ),
    ((), r"No module named 'pkg_resources'", 'pip install "setuptools<81"'),
    ((), r"No module named '(ftfy|regex)'", 'pip install ftfy regex'),
    (
        (),
        r'numpy.*(1\.x|multiarray|binary incompatib)',
        'install numpy as requirements/constraints.txt names it',
    ),
    (
        ('operator',),
        'has not ended',
        'python -m pelk_mm.ops.backends shows what the compiler does',
    ),
    (
        ('operator', 'pelk_mm'),
        '',
        'please report it, with all that is printed here',
    ),
)


def _advice(environment: Environment, probe: str, message: str) -> str:
    for known, pattern, advice in _KNOWN:
        if (not known or probe in known) and re.search(pattern, message):
            return advice.format(build=_build_mmcv(environment))
    return _reinstall(environment, probe)


def _reinstall(environment: Environment, probe: str) -> str:
    if probe == 'mmcv_ops':
        return _build_mmcv(environment)
    if probe == 'mmcv':
        return f'once torch is there: {_build_mmcv(environment)}'
    if probe in ('torch', 'torchvision', 'numpy'):
        return f'pip install -r requirements/torch.txt; {_INSTALL}'
    if probe == 'cv2':
        return (
            'pip install opencv-python (opencv-python-headless without libGL)'
        )
    return f'pip install -r requirements/{environment.row()}.txt; {_INSTALL}'


def _build_mmcv(environment: Environment) -> str:
    """The command that builds mmcv, and against the torch that is there."""
    return (
        'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps '
        '--no-cache-dir --force-reinstall -r '
        f'requirements/{environment.row()}-mmcv.txt'
    )
