"""What the facts about an environment mean, and what to do about it.

Every check is a function of :class:`Environment` alone that yields
:class:`Finding`; ``CHECKS`` lists them. A check that raises becomes a finding
itself and stops no other.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..distributions import FAMILIES, installed_families, providers
from .processes import Outcome
from .stacks import ends, release

TROUBLE = 'trouble'
NOTE = 'note'
_LIMIT = re.compile(
    r'^(mmcv|mmengine)_?(min|max)\w*\s*=\s*[\'"]([^\'"]+)[\'"]',
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Finding:
    """Something that somebody should know, and one line on what to do."""

    check: str
    level: str  # 'trouble', or 'note' for what may be intended
    text: str
    advice: str


@dataclass(frozen=True)
class Environment:
    """All that is known about an environment."""

    packages: dict[str, str]  # versions by normalised distribution name
    outcomes: dict[str, Outcome]
    compiler: str | None  # the first line of its --version
    gpus_of_driver: list[str] = field(default_factory=list)
    python: tuple[int, int] = sys.version_info[:2]

    def works(self, probe: str) -> bool:
        return probe in self.outcomes and self.outcomes[probe].works

    def facts(self, probe: str) -> dict[str, Any]:
        """What a probe found; nothing if it does not work."""
        return self.outcomes[probe].facts if self.works(probe) else {}

    @property
    def family(self) -> str:
        """Whose packages are installed; the first of them if none are."""
        return (installed_families(self.packages) or list(FAMILIES))[0]

    @property
    def lite(self) -> bool:
        """Whether mmcv was installed without compiled operators on purpose."""
        return 'mmcv-lite' in self.packages


def examine(environment: Environment) -> list[Finding]:
    """All findings, troubles first."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(environment)
        except Exception as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name
            advice = f'pip install {absent}' if absent else _REPORT
            text = f'this check itself failed: {type(error).__name__}: {error}'
            found.append(Finding(check.__name__, TROUBLE, text, advice))
    return sorted(found, key=lambda finding: finding.level != TROUBLE)


def tested(environment: Environment) -> Iterator[Finding]:
    """What is older than every tested release does not run; newer may."""
    python = '.'.join(map(str, environment.python))
    torch = environment.packages.get('torch')
    for name, version in (('Python', python), ('torch', torch)):
        if version is None:
            continue
        oldest, newest = ends(name.lower())
        span = f'than all tested, {oldest} to {newest}'
        if release(version) < release(oldest):
            text = f'{name} {version} is older {span}'
            yield Finding(
                name.lower(), TROUBLE, text, f'use {oldest} at least'
            )
        elif release(version) > release(newest):
            text = f'{name} {version} is newer {span}'
            advice = f'if something fails, try {name} {newest}'
            yield Finding(name.lower(), NOTE, text, advice)


def forks(environment: Environment) -> Iterator[Finding]:
    """Two distributions that bring the same files."""
    clash = False
    for module, found in providers(environment.packages).items():
        names = [name for brought in found.values() for name in brought]
        if len(names) > 1:
            clash = True
            text = (
                f'{" and ".join(names)} are both installed: their files '
                'overwrite each other'
            )
            advice = f'{_uninstall(names)}, then install one of them again'
            yield Finding(module, TROUBLE, text, advice)
    families = installed_families(environment.packages)
    if len(families) > 1 and not clash:
        mixed = ' and '.join(families)
        text = f'packages of {mixed} are mixed, which is not tested'
        advice = 'install all of them from one of the two'
        yield Finding('packages', NOTE, text, advice)


def opencv(environment: Environment) -> Iterator[Finding]:
    """Its builds share their files: harmless while they are of one version."""
    builds = re.compile(r'opencv(-contrib)?-python(-headless)?')
    found = sorted(filter(builds.fullmatch, environment.packages))
    if len({environment.packages[name] for name in found}) > 1:
        text = (
            f'{" and ".join(found)} are installed in different versions, and '
            'their files overwrite each other'
        )
        advice = f'{_uninstall(found)}, then install {_OPENCV}'
        yield Finding('cv2', TROUBLE, text, advice)


def limits(environment: Environment) -> Iterator[Finding]:
    """The versions of mmcv and mmengine that each library accepts."""
    packages = environment.packages
    there = providers(packages)
    for module in ('mmpretrain', 'mmseg', 'mmdet'):
        for needed, low, high in declared_limits(module):
            for name, *_ in there[needed].values():
                # mmcv and mmengine bring it.
                from packaging.version import Version

                if Version(low) <= Version(packages[name]) < Version(high):
                    continue
                text = (
                    f'it accepts {needed} >= {low}, < {high} and refuses to '
                    f'be imported with {name} {packages[name]}'
                )
                advice = _install(environment, [needed], '--upgrade')
                yield Finding(module, TROUBLE, text, advice)


def accepted(environment: Environment) -> Iterator[Finding]:
    """The versions that pelk_mm was written for, as its extras name them."""
    packages = environment.packages
    names = [name for names in FAMILIES.values() for name in names.values()]
    ours = [name for name in names if name in packages]
    try:
        extras = requires('pelk_mm') if ours else None
    except PackageNotFoundError:  # a clone that is not installed
        return
    for extra in extras or ():
        # mmcv and mmengine bring it.
        from packaging.requirements import Requirement

        needed = Requirement(extra)
        if needed.name not in ours:
            continue
        version = packages[needed.name]
        if not needed.specifier.contains(version, prereleases=True):
            text = f'pelk_mm needs {needed.name} {needed.specifier}'
            advice = f'pip install {shlex.quote(extra.split(";")[0].strip())}'
            text = f'{text}, {version} is installed'
            yield Finding(needed.name, NOTE, text, advice)


def declared_limits(module: str) -> list[tuple[str, str, str]]:
    """``(import name, least version, version to be below)`` of a library.

    It is not imported. Empty if it is absent or names none.
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
    torchvision = environment.packages.get('torchvision')
    if torch is None or torchvision is None:
        return
    from packaging.requirements import Requirement

    text = None
    for needed in map(Requirement, requires('torchvision') or ()):
        accepted = needed.specifier
        fits = accepted.contains(torch, prereleases=True)
        if needed.name == 'torch' and not fits:
            text = (
                f'torchvision {torchvision} is built for torch {accepted}, '
                f'torch {torch} is installed'
            )
    tags = [version.partition('+')[2] for version in (torch, torchvision)]
    if text is None and all(tags) and tags[0] != tags[1]:
        text = f'torch is built for {tags[0]}, torchvision for {tags[1]}'
    if text is not None:
        yield Finding('torchvision', TROUBLE, text, _torchvision(environment))


def undeclared(environment: Environment) -> Iterator[Finding]:
    """mmsegmentation imports these; the fork says so, the original not."""
    packages = environment.packages
    names = [name for name in _UNDECLARED if name not in packages]
    if names and 'mmsegmentation' in packages:
        needed = ' and '.join(names)
        text = f'mmsegmentation needs {needed}, which it does not install'
        yield Finding('mmseg', TROUBLE, text, f'pip install {" ".join(names)}')


def missing(environment: Environment) -> Iterator[Finding]:
    """All that is not installed, at once."""
    outcomes = environment.outcomes.items()
    absent = [name for name, outcome in outcomes if outcome.state == 'absent']
    required = [name for name in absent if name in _REQUIRED]
    others = [name for name in absent if name not in _REQUIRED]
    if required:
        text = f'not installed: {", ".join(required)}'
        advice = _install(environment, required)
        yield Finding('packages', TROUBLE, text, advice)
    if others:
        text = f'not installed: {", ".join(others)}'
        advice = _install(environment, others)
        advice = f'if models of them are wanted: {advice}'
        yield Finding('packages', NOTE, text, advice)


def probes(environment: Environment) -> Iterator[Finding]:
    """What could not be imported or run."""
    for name, outcome in environment.outcomes.items():
        if outcome.state == 'fails':
            level, text = TROUBLE, outcome.message
            advice = _advice(environment, name, text)
            what = 'mmcv.ops' if name == 'mmcv_ops' else name
            if name == 'mmcv_ops' and environment.lite:
                level, text = NOTE, _LITE
                advice = f'"make install" in the repository, or: {advice}'
            yield Finding(what, level, text, advice)


def gpu(environment: Environment) -> Iterator[Finding]:
    if not environment.works('torch'):
        return
    facts = environment.facts('torch')
    if environment.gpus_of_driver and not facts['gpus']:
        text = f'the driver lists {environment.gpus_of_driver[0]}, torch sees'
        if facts['cuda'] is None:
            level, why = NOTE, 'it is built without CUDA'
            advice = 'install a torch that is built with CUDA'
        else:
            level, why = TROUBLE, f'it is built for CUDA {facts["cuda"]}'
            advice = (
                'look at CUDA_VISIBLE_DEVICES, and whether the driver is new '
                'enough for that CUDA'
            )
        yield Finding('gpu', level, f'{text} no GPU: {why}', advice)
    mmcv = environment.facts('mmcv_ops')
    if facts['gpus'] and mmcv and mmcv['cuda'] is None:
        text = 'mmcv was built without CUDA: detectors do not run on the GPU'
        advice = _build_mmcv(environment)
        yield Finding('mmcv.ops', NOTE, text, advice)


def backends(environment: Environment) -> Iterator[Finding]:
    """Only slow backends left, or wrong results."""
    found = environment.facts('operator').get('backends', {})
    reason = found.get('cpu', {}).get('cpp')
    if reason is not None:
        text = f'it does not run on cpu: {reason}'
        level = TROUBLE
        advice = 'python -m pelk_mm.ops.backends shows the whole failure'
        if environment.compiler is None and 'compiler' in reason:
            level = NOTE
            advice = (
                'another backend is used, many times slower; install a C++ '
                'compiler (on Debian: apt-get install g++)'
            )
        yield Finding('backend cpp', level, text, advice)
    reason = found.get('cuda', {}).get('triton')
    if reason is not None:
        text = f'it does not run on cuda: {reason}'
        advice = 'another backend is used, many times slower'
        yield Finding('backend triton', NOTE, text, advice)


CHECKS: tuple[Callable[[Environment], Iterator[Finding]], ...] = (
    tested,
    forks,
    missing,
    torch_and_torchvision,
    accepted,
    limits,
    undeclared,
    opencv,
    probes,
    gpu,
    backends,
)
#: Packages without which nothing of pelk_mm works, or parts of mmengine.
_REQUIRED = ('numpy', 'torch', 'cv2', 'mmengine', 'pkg_resources', 'mmcv')
_UNDECLARED = ('ftfy', 'regex')
#: What pip is to be given for a name that is imported, where the family does
#: not say.
_REQUIREMENTS = {
    'numpy': ['numpy<2.3'],
    'cv2': ['opencv-python'],
    'pkg_resources': ['setuptools>=77,<81'],
}
#: What is built; mmdet 3.3.0 and mmsegmentation 1.2.2 accept no newer mmcv.
_MMCV = {'openmmlab': 'mmcv<2.2', 'onedl': 'onedl-mmcv'}
_LITE = (
    'mmcv-lite has no compiled operators: classification and segmentation '
    'work once pelk_mm is imported, detection and the test suite need them'
)
_REPORT = 'please report it, with all that is printed here'
_OPENCV = 'opencv-python, or opencv-python-headless where there is no libGL'
_NUMPY = 'pip install "numpy<2.3"'
#: What a message of a probe is known to mean: probes (none for any of them),
#: pattern, advice.
# fmt: off
_KNOWN: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (('cv2', 'mmengine', 'mmcv'), 'libGL|libgthread|libxcb',
     'pip uninstall -y opencv-python; pip install opencv-python-headless, '
     'or apt-get install libgl1'),
    (('mmcv_ops',), r'mmcv\._ext', '{build}'),
    (('mmcv_ops', 'mmdet'),
     r'undefined symbol|libtorch|libc10|libcuda|\.so',
     'mmcv was built for another torch: {build}'),
    (('torch_numpy',), '',
     f'this torch was built for another numpy: {_NUMPY}'),
    (('torchvision',), r'torchvision::|undefined symbol|\.so',
     'torchvision was built for another torch: {torchvision}'),
    (('torch_cuda',), '',
     'this torch has no kernels for this GPU or driver: install a torch for '
     'its CUDA'),
    ((), "No module named 'pkg_resources'", 'pip install "setuptools<81"'),
    ((), "No module named '(ftfy|regex)'", 'pip install ftfy regex'),
    ((), r'numpy.*(1\.x|multiarray|binary incompatib)', _NUMPY),
    (('operator',), 'has not ended',
     'python -m pelk_mm.ops.backends shows what the compiler does'),
    (('pelk_mm',), "No module named 'pelk_mm",
     'it was installed before a part of it was there: install it again'),
    (('operator', 'pelk_mm'), '', _REPORT),
)
# fmt: on


def _advice(environment: Environment, probe: str, message: str) -> str:
    for known, pattern, advice in _KNOWN:
        if (not known or probe in known) and re.search(pattern, message):
            build = _build_mmcv(environment)
            torchvision = _torchvision(environment)
            return advice.format(build=build, torchvision=torchvision)
    return _install(environment, [probe], '--force-reinstall', '--no-deps')


def _install(environment: Environment, names: list[str], *options: str) -> str:
    """The command that installs what is imported by these names."""
    family, packages = FAMILIES[environment.family], environment.packages
    lite = environment.family == 'openmmlab' and 'mmcv' not in packages
    wanted: list[str] = []
    build = None
    if 'mmseg' in names:
        wanted += _UNDECLARED
    for name in names:
        if name == 'mmcv_ops' or (name == 'mmcv' and not lite):
            build = _build_mmcv(environment)
        elif name == 'mmcv':
            wanted.append('mmcv-lite<2.2')
        else:
            wanted += _REQUIREMENTS.get(name) or [family.get(name, name)]
    if 'torchvision' in names and 'torch' in packages:
        # Otherwise pip might exchange it for a newer one.
        wanted.append(f'torch=={packages["torch"]}')
    pip = shlex.join(['pip', 'install', *options, *wanted])
    return '; '.join([pip] * bool(wanted) + [build] * bool(build))


def _torchvision(environment: Environment) -> str:
    """The command that installs the one for the torch that is there."""
    install = _install(environment, ['torchvision'])
    return f'{_uninstall(["torchvision"])}; {install}'


def _uninstall(names: list[str]) -> str:
    return f'pip uninstall -y {" ".join(names)}'


def _build_mmcv(environment: Environment) -> str:
    """The command that builds mmcv for the torch that is there."""
    return f'pelk build-mmcv {shlex.quote(_MMCV[environment.family])}'
