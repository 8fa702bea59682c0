"""Which distributions bring what."""

from pathlib import Path

from pelk_mm.distributions import (
    FAMILIES,
    installed,
    installed_families,
    providers,
)

ROOT = Path(__file__).parents[1]


def distribution(folder, name, version):
    info = folder / f'{name}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')


def test_installed(tmp_path):
    distribution(tmp_path / 'a', 'OneDL.MMCV', '2.3.6')
    distribution(tmp_path / 'a', 'torch', '2.10.0')
    distribution(tmp_path / 'b', 'torch', '1.0')
    (tmp_path / 'b' / 'broken-1.dist-info').mkdir()
    path = [str(tmp_path / 'a'), str(tmp_path / 'b')]
    assert installed(path) == {'onedl-mmcv': '2.3.6', 'torch': '2.10.0'}
    assert installed([str(tmp_path)]) == {}


def test_providers():
    packages = {
        'mmcv': '2.1.0',
        'mmcv-full': '1.7.2',
        'onedl-mmcv': '2.3.6',
        'mmdet': '3.3.0',
        'torch': '2.10.0',
    }
    assert providers(packages) == {
        'mmengine': {},
        'mmcv': {'openmmlab': ['mmcv', 'mmcv-full'], 'onedl': ['onedl-mmcv']},
        'mmdet': {'openmmlab': ['mmdet']},
        'mmseg': {},
        'mmpretrain': {},
    }
    assert installed_families(packages) == ['openmmlab', 'onedl']
    assert installed_families({'onedl-mmcv': '2.3.6'}) == ['onedl']
    assert installed_families({'torch': '2.10.0'}) == []


def test_requirements_name_what_the_families_do():
    for family, distributions in FAMILIES.items():
        lines = [
            line.split('==')[0]
            for name in (f'{family}.txt', f'{family}-mmcv.txt')
            for line in (ROOT / 'requirements' / name).read_text().splitlines()
            if '==' in line and line[0] != '#'
        ]
        assert sorted(lines) == sorted(distributions.values())


def test_this_environment_has_one_family():
    assert len(installed_families(installed())) == 1
