"""``python -m pelk_mm.doctor`` where things are broken, and where not."""

import json
import subprocess
import sys

import pytest

from pelk_mm.compat import has_ops
from pelk_mm.ops import available_backends
from tests.conftest import ROOT

CRASH = 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'


def findings(found, check):
    return [
        finding for finding in found['findings'] if finding['check'] == check
    ]


def only(found, check):
    (finding,) = findings(found, check)
    assert finding['advice'] and '\n' not in finding['advice']
    return finding


def test_this_environment_is_sound(root):
    done = subprocess.run(
        [sys.executable, '-m', 'pelk_mm.doctor', '--json'],
        cwd=root,
        text=True,
        capture_output=True,
        timeout=900,
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0, found['findings']
    assert found['ok']
    assert found['mmcv_ops'] == has_ops()
    assert found['versions']['torch']
    assert found['backends']['cpu'] == available_backends('cpu')


def test_nothing_is_installed(made_up):
    found = made_up.examine()
    assert not found['ok']
    assert found['family'] == []
    assert found['backends'] == {}
    # All at once, and nothing of what cannot work without them.
    required, others = found['findings']
    assert required['text'] == (
        'not installed: numpy, torch, cv2, mmengine, pkg_resources, mmcv'
    )
    assert required['advice'].startswith("pip install 'numpy<2.3' torch ")
    assert others['text'].startswith('not installed: torchvision, mmpretrain')
    assert required['level'] == 'trouble' and others['level'] == 'note'


def test_as_text(made_up):
    done = made_up.run('-m', 'pelk_mm.doctor')
    assert done.returncode == 1
    assert 'ERROR packages: not installed: numpy, torch, ' in done.stdout
    assert '\n  -> pip install ' in done.stdout
    assert done.stdout.endswith('there is trouble\n')


def test_a_crash_stops_nothing_but_itself(made_up):
    made_up.add_module('numpy', "__version__ = '2.2.6'")
    made_up.add_module('torch', CRASH)
    made_up.add_module('cv2', "__version__ = '4'")
    found = made_up.examine()
    assert 'SIGSEGV' in only(found, 'torch')['text']
    checks = [f['check'] for f in found['findings']]
    assert checks == ['packages', 'torch', 'packages']


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ("raise OSError('libcudart.so.12: cannot open')", 'libcudart'),
        ("import os; print('farewell'); os._exit(4)", 'status 4'),
    ],
)
def test_broken_imports(made_up, text, said):
    made_up.add_module('numpy')
    made_up.add_module('torch', text)
    finding = only(made_up.examine(), 'torch')
    assert said in finding['text']
    assert finding['level'] == 'trouble'


def test_both_forks_at_once(made_up):
    made_up.add_distribution('mmcv', '2.1.0')
    made_up.add_distribution('onedl_mmcv', '2.3.6')
    finding = only(made_up.examine(), 'mmcv')
    assert 'mmcv and onedl-mmcv are both installed' in finding['text']
    assert finding['advice'].startswith('pip uninstall -y mmcv onedl-mmcv')


def test_limits_of_a_library(with_packaging):
    with_packaging.add_distribution('mmcv', '2.2.0')
    with_packaging.add_distribution('mmdet', '3.3.0')
    with_packaging.add_module(
        'mmdet',
        (
            "mmcv_minimum_version = '2.0.0rc4'\n"
            "mmcv_maximum_version = '2.2.0'\n"
            "raise AssertionError('this need not be imported')\n"
        ),
    )
    finding = only(with_packaging.examine(), 'mmdet')
    assert '>= 2.0.0rc4, < 2.2.0' in finding['text']
    assert 'mmcv 2.2.0' in finding['text']
    assert finding['advice'].endswith("'mmcv<2.2'")


def test_torchvision_of_another_torch(with_packaging):
    with_packaging.add_distribution('torch', '2.10.0+cpu')
    with_packaging.add_distribution(
        'torchvision', '0.24.0', requires='torch (==2.9.0)'
    )
    finding = only(with_packaging.examine(), 'torchvision')
    assert '==2.9.0' in finding['text'] and '2.10.0+cpu' in finding['text']


def test_torchvision_of_another_cuda(with_packaging):
    with_packaging.add_distribution('torch', '2.10.0+cpu')
    with_packaging.add_distribution(
        'torchvision', '0.25.0+cu128', requires='torch (==2.10.0)'
    )
    assert 'for cpu' in only(with_packaging.examine(), 'torchvision')['text']


def test_leftovers_of_pip_are_passed_over(made_up):
    (made_up.site / '~mmcv-1.0.dist-info').mkdir()
    (made_up.site / 'mmcv-2.1.0.dist-info').mkdir()
    made_up.add_distribution('torch', '2.10.0')
    assert made_up.examine()['versions'] == {'torch': '2.10.0'}


def test_without_packaging_versions_are_not_compared(made_up):
    made_up.add_distribution('torch')
    made_up.add_distribution('torchvision')
    finding = only(made_up.examine(), 'torch_and_torchvision')
    assert finding['advice'] == 'pip install packaging'


def test_importing_the_package_still_raises(made_up):
    """Only the doctor is spared; the same words as an argument are not."""
    for args in (
        ('-c', 'import pelk_mm'),
        ('-m', 'pelk_mm.ops.backends', 'pelk_mm.doctor'),
        ('-c', 'import pelk_mm.doctor', '-m', 'pelk_mm.doctor'),
    ):
        done = made_up.run(*args)
        assert done.returncode == 1
        assert 'RuntimeError: pelk_mm cannot be imported' in done.stderr
        assert '"python -m pelk_mm.doctor" says what to do' in done.stderr
    for args in (
        ('-mpelk_mm.doctor', '--help'),
        ('-W', 'ignore', '-m', 'pelk_mm.doctor', '--help'),
    ):
        assert made_up.run(*args).returncode == 0


@pytest.mark.parametrize(
    ('have', 'family', 'room'),
    [
        ((), 'onedl', True),
        (('mmcv',), 'openmmlab', True),
        (('mmcv',), 'onedl', False),
        (('mmcv-lite',), 'onedl', False),
        (('onedl-mmengine',), 'onedl', True),
        (('onedl-mmengine',), 'openmmlab', False),
    ],
)
def test_room_for_a_family(made_up, have, family, room):
    for name in have:
        made_up.add_distribution(name)
    done = made_up.run('-m', 'pelk_mm.doctor', '--has-room-for', family)
    assert done.returncode == (0 if room else 1)
    assert all(name in done.stderr for name in have) or room


class TestInstaller:
    """Before it downloads anything."""

    def install(self, made_up, *args, **variables):
        # As if a former installation was whole: there is room on the disk.
        (made_up.folder / '.installed').touch()
        return subprocess.run(
            ['bash', str(ROOT / 'tools' / 'install.sh'), *args],
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=120,
            env={
                'PATH': '/usr/local/bin:/usr/bin:/bin',
                'PYTHON': str(made_up.python),
                'CXX': 'true',
                **variables,
            },
        )

    def test_refuses_to_put_one_family_over_the_other(self, made_up):
        made_up.add_distribution('mmcv')
        done = self.install(made_up, str(made_up.folder), 'onedl')
        assert done.returncode == 1
        assert 'would overwrite the files of mmcv' in done.stderr
        assert 'holds other packages' in done.stderr

    @pytest.mark.parametrize(
        ('args', 'said'),
        [
            (['FOLDER', 'none'], 'no packages none; known are'),
            (['--lite', 'FOLDER', 'onedl'], 'leave out --lite'),
            (['--full'], 'unknown option --full'),
            (['FOLDER', 'onedl', '--lite'], 'at most FOLDER and PACKAGES'),
        ],
    )
    def test_wrong_arguments(self, made_up, args, said):
        done = self.install(made_up, *args)
        assert done.returncode == 1 and said in done.stderr

    def test_help(self, made_up):
        done = self.install(made_up, '--help')
        assert done.returncode == 0 and '--lite' in done.stdout
        assert 'set -e' not in done.stdout

    @pytest.mark.parametrize('name', ['NUMPY', 'TORCH'])
    def test_versions(self, made_up, name):
        done = self.install(made_up, str(made_up.folder), **{name: '1.26/p'})
        assert f'{name} must be a version' in done.stderr

    def test_python_that_does_not_run(self, made_up):
        done = self.install(made_up, str(made_up.folder), PYTHON='false')
        assert done.stderr.startswith('error: false does not run')
