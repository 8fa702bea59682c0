"""Probes that end badly, among those that do not."""

import pytest

from pelk_mm.doctor.probes import NEEDS, PROBES
from pelk_mm.doctor.processes import run_probes


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules that are found before the real ones, in other processes."""
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f'{name}.py').write_text(text)

    return write


def test_every_probe_says_what_it_needs():
    assert list(PROBES) == list(NEEDS)
    names = list(NEEDS)
    for name, needs in NEEDS.items():
        assert all(names.index(need) < names.index(name) for need in needs)


def test_all_in_one_process(modules, tmp_path):
    modules(
        numpy=f"open({str(tmp_path / 'log')!r}, 'a').write('x')",
        cv2="__version__ = '4'",
    )
    outcomes = run_probes(['numpy', 'cv2'])
    assert outcomes['numpy'].works
    assert outcomes['numpy'].facts['version'] == 'unknown'
    assert outcomes['cv2'].facts['version'] == '4'
    assert (tmp_path / 'log').read_text() == 'x'


def test_a_failure_is_followed_by_a_new_process(modules, tmp_path):
    modules(
        numpy="__version__ = '2'",
        torch="raise ValueError('a\\nb\\nc')",
        cv2=f"open({str(tmp_path / 'log')!r}, 'a').write('x')",
    )
    outcomes = run_probes(['numpy', 'torch', 'torch_numpy', 'cv2'])
    assert [outcome.state for outcome in outcomes.values()] == [
        'works',
        'fails',
        'skipped',
        'works',
    ]
    assert outcomes['torch'].message == 'ValueError: a … c'
    assert outcomes['torch_numpy'].message == 'torch does not work'
    assert (tmp_path / 'log').read_text() == 'x'


def test_what_does_not_end_is_ended(modules, tmp_path):
    modules(
        numpy=(
            'import subprocess, time\n'
            "subprocess.Popen(['sleep', '60'])\n"
            'time.sleep(60)\n'
        )
    )
    outcome = run_probes(['numpy'], timeout=2)['numpy']
    assert outcome.state == 'fails'
    assert 'has not ended after 2 seconds' in outcome.message


def test_last_words_of_a_crash(modules):
    modules(
        numpy=(
            "import os, sys\nprint('why', file=sys.stderr, "
            'flush=True)\nos.abort()\n'
        )
    )
    message = run_probes(['numpy'])['numpy'].message
    assert message == 'the process was ended by SIGABRT; its last words: why'


def test_a_dependency_that_is_missing_is_no_absence(modules):
    modules(numpy='import missing_thing')
    outcome = run_probes(['numpy'])['numpy']
    assert outcome.state == 'fails'
    assert 'missing_thing' in outcome.message
