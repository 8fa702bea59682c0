"""What the facts mean, from facts that are made up."""

import re

import pytest

from pelk_mm.distributions import FAMILIES
from pelk_mm.doctor import checks
from pelk_mm.doctor.checks import NOTE, TROUBLE, Environment, examine
from pelk_mm.doctor.probes import NEEDS
from pelk_mm.doctor.processes import Outcome

SOUND = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0',
    'ftfy': '6.3.1',
    'regex': '2026.1.1',
    'opencv-python': '4.11.0.86',
}
NO_GPU = 'it needs an NVIDIA GPU'
FACTS = {
    'torch': {'cuda': '12.8', 'gpus': []},
    'mmcv_ops': {'cuda': None},
    'operator': {
        'backends': {'cpu': {'triton': NO_GPU, 'cpp': None, 'dense': None}}
    },
}
GPU = {'name': 'GPU 9', 'capability': [9, 0], 'memory_gib': 80.0}


@pytest.fixture(autouse=True)
def _no_real_libraries(monkeypatch):
    monkeypatch.setattr(checks, 'declared_limits', lambda module: [])


def environment(
    packages=None, without=(), outcomes=None, compiler='c++ 12', **others
):
    names = {**SOUND, **(packages or {})}
    for name in without:
        del names[name]
    found = {name: Outcome('works', FACTS.get(name, {})) for name in NEEDS}
    return Environment(
        packages=names,
        outcomes={**found, **(outcomes or {})},
        compiler=compiler,
        python=others.pop('python', (3, 11)),
        **others,
    )


def fails(message, state='fails'):
    return Outcome(state, message=message)


@pytest.mark.parametrize(
    'facts',
    [
        {},
        # As the fork's mmdetection brings it.
        dict(packages={'opencv-python-headless': '4.11.0.86'}),
        dict(
            gpus_of_driver=['GPU 0: X'],
            outcomes={
                'torch': Outcome('works', {'cuda': '12.8', 'gpus': [GPU]}),
                'mmcv_ops': Outcome('works', {'cuda': '12.8'}),
            },
        ),
    ],
)
def test_nothing_to_find(facts):
    assert examine(environment(**facts)) == []


def failed(probe, message, state='fails'):
    return dict(outcomes={probe: fails(message, state)})


def found(probe, **facts):
    return dict(outcomes={probe: Outcome('works', facts)})


def absent(*probes):
    outcome = fails('it is not installed', 'absent')
    return dict(outcomes=dict.fromkeys(probes, outcome))


HEADLESS = 'opencv-python-headless'
LITE = dict(packages={'mmcv-lite': '2.1.0'}, without=['mmcv'])
DRIVER = dict(gpus_of_driver=['GPU 0: X'])
NO_CPP = found('operator', backends={'cpu': {'cpp': 'there is no compiler'}})
BAD_CPP = found('operator', backends={'cpu': {'cpp': 'it was cut short'}})
NO_TRITON = {'cpu': {'cpp': None}, 'cuda': {'triton': 'too old'}}
NO_EXT = "ModuleNotFoundError: No module named 'mmcv._ext'"
NO_NMS = 'RuntimeError: operator torchvision::nms does not exist'
NO_PKG = "ModuleNotFoundError: No module named 'pkg_resources'"


#: Facts, and the one finding that they lead to: check, level, parts of its
#: text and of its advice.
# fmt: off
FINDINGS = [
    (dict(python=(3, 9)), 'python', TROUBLE,
     r'^Python 3\.9 is older than all tested, 3\.10 to', 'use 3.10 at least'),
    (dict(python=(3, 99)), 'python', NOTE, '3.99 is newer', 'try Python 3'),
    (dict(packages={'torch': '9.1.0+cpu'}), 'torch', NOTE,
     r'torch 9\.1\.0\+cpu is newer than all tested', r'try torch 2\.'),
    (dict(packages={'torch': '1.13.1'}), 'torch', TROUBLE,
     'torch 1.13.1 is older', 'at least'),
    (dict(packages={'onedl-mmdetection': '3.5.1'}), 'mmdet', TROUBLE,
     'mmdet and onedl-mmdetection are both', 'pip uninstall -y mmdet onedl'),
    (dict(packages={'mmcv-lite': '2.1.0'}), 'mmcv', TROUBLE,
     'mmcv and mmcv-lite are both', 'pip uninstall -y mmcv mmcv-lite'),
    (dict(packages={'onedl-mmcv': '2.3.6'}, without=['mmcv']),
     'packages', NOTE, 'openmmlab and onedl are mixed', 'one of the two'),
    (dict(packages={HEADLESS: '4.9'}), 'cv2', TROUBLE,
     'different versions', 'pip uninstall -y opencv'),
    (dict(without=['ftfy']), 'mmseg', TROUBLE,
     'needs ftfy,', 'pip install ftfy$'),
    (dict(without=['ftfy', 'regex']), 'mmseg', TROUBLE,
     'ftfy and regex', 'pip install ftfy regex$'),
    (absent('mmdet'), 'packages', NOTE,
     'not installed: mmdet', 'if models of them.*: pip install mmdet$'),
    (absent('mmcv') | dict(without=['mmcv']), 'packages', TROUBLE,
     'not installed: mmcv', "^pip install 'mmcv-lite<2.2'$"),
    (absent('numpy', 'torch', 'pkg_resources'), 'packages',
     TROUBLE, 'not installed: numpy, torch, ',
     "^pip install 'numpy<2.3' torch 'setuptools>=77,<81'$"),
    (absent('torchvision') | dict(packages={'torch': '2.10.0'}), 'packages',
     NOTE, 'torchvision', ': pip install torchvision torch==2.10.0$'),
    (failed('mmcv_ops', NO_EXT), 'mmcv.ops', TROUBLE,
     '_ext', "^pelk build-mmcv 'mmcv<2.2'$"),
    (failed('mmcv_ops', NO_EXT) | LITE, 'mmcv.ops', NOTE,
     'classification and segmentation',
     '^"make install" in .*: pelk build-mmcv'),
    (dict(packages={'mmengine': '0.9.0'}), 'mmengine', NOTE,
     'pelk_mm needs mmengine >=0.10.4, 0.9.0', "^pip install 'mmengine>=0"),
    (failed('mmcv_ops', 'ImportError: undefined symbol: _Z'), 'mmcv.ops',
     TROUBLE, 'undefined', 'for another torch: pelk build-mmcv'),
    (failed('torchvision', NO_NMS), 'torchvision', TROUBLE,
     'nms', 'built for another torch'),
    (failed('torch_numpy', 'RuntimeError: Numpy is not'), 'torch_numpy',
     TROUBLE, 'Numpy', 'another numpy'),
    (failed('cv2', 'ImportError: libGL.so.1: cannot open'), 'cv2', TROUBLE,
     'libGL', 'opencv-python-headless'),
    (failed('mmengine', NO_PKG), 'mmengine', TROUBLE,
     'pkg_resources', 'setuptools<81'),
    (failed('pelk_mm', "No module named 'pelk_mm_names'"), 'pelk_mm', TROUBLE,
     'pelk_mm_names', 'install it again'),
    (failed('operator', 'has not ended after 600 seconds'), 'operator',
     TROUBLE, '600', 'pelk_mm.ops.backends'),
    (DRIVER, 'gpu', TROUBLE, 'torch sees no GPU', 'CUDA_VISIBLE_DEVICES'),
    (DRIVER | found('torch', cuda=None, gpus=[]), 'gpu', NOTE,
     'without CUDA', 'built with CUDA'),
    (DRIVER | found('torch', cuda='12.8', gpus=[GPU]), 'mmcv.ops', NOTE,
     'without CUDA', '^pelk build-mmcv'),
    (found('operator', backends={'cpu': {'cpp': 'no room', 'dense': None}}),
     'backend cpp', TROUBLE, 'no room', 'pelk_mm.ops.backends'),
    (NO_CPP | dict(compiler=None), 'backend cpp', NOTE,
     'no compiler', r'another backend.*apt-get install g\+\+'),
    (BAD_CPP | dict(compiler=None), 'backend cpp', TROUBLE,
     'cut short', 'pelk_mm.ops.backends'),
    (found('operator', backends=NO_TRITON), 'backend triton', NOTE,
     'on cuda: too old', 'another backend'),
]
# fmt: on


@pytest.mark.parametrize('facts, check, level, text, advice', FINDINGS)
def test_finding(facts, check, level, text, advice):
    (finding,) = examine(environment(**facts))
    assert (finding.check, finding.level) == (check, level)
    assert re.search(text, finding.text)
    assert re.search(advice, finding.advice)
    assert '\n' not in finding.text + finding.advice


def test_advice_is_for_the_family_that_is_installed():
    onedl = dict.fromkeys(FAMILIES['onedl'].values(), '9.0')
    (finding,) = examine(
        Environment(
            packages=onedl,
            compiler=None,
            python=(3, 12),
            outcomes={'mmcv_ops': fails('undefined symbol')},
        )
    )
    assert finding.advice.endswith(' onedl-mmcv')


def test_a_failing_check_stops_no_other(monkeypatch):
    def broken(environment):
        raise KeyError('what')
        yield

    monkeypatch.setattr(checks, 'CHECKS', (broken, checks.tested))
    first, second = examine(environment(python=(3, 9)))
    assert (first.check, first.level) == ('broken', TROUBLE)
    assert "KeyError: 'what'" in first.text
    assert second.check == 'python'


def test_troubles_come_first():
    levels = [
        finding.level
        for finding in examine(environment(python=(3, 99), without=['ftfy']))
    ]
    assert levels == [TROUBLE, NOTE]
