"""tools/benchmarks/on_gpu.sh, with a Python that notes what it is given."""

import os
import shlex
import subprocess
import sys

import pytest
import torch

STEPS = 'environment', 'tests', 'operator', 'networks'
STEPS += 'steps', 'compiled', 'demo'


@pytest.fixture
def run(root, tmp_path):
    """Run the script; what is asked for that has a word in it fails."""

    def run(word='nothing', **environment):
        python, notes = tmp_path / 'python', tmp_path / 'notes'
        python.write_text(
            '#!/usr/bin/env bash\n'
            f'printf "%q " "$@" >> {notes}; echo >> {notes}\n'
            f'case "$*" in *"{word}"*) exit 3 ;; esac\n'
        )
        python.chmod(0o755)
        notes.unlink(missing_ok=True)
        done = subprocess.run(
            ['bash', root / 'tools/benchmarks/on_gpu.sh', tmp_path / 'out'],
            env=os.environ | {'PYTHON': str(python)} | environment,
            capture_output=True,
            text=True,
        )
        return done, [*map(shlex.split, notes.read_text().splitlines())]

    return run


def test_steps(run, tmp_path):
    done, asked = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(asked) == 1 + len(STEPS)
    for name in STEPS:
        assert f'== {name}: exit status 0' in done.stdout
    assert (tmp_path / 'out/log.txt').read_text() == done.stdout


def test_a_step_that_fails_stops_no_other(run):
    done, asked = run('-m pytest')
    assert done.returncode == 1 and len(asked) == 1 + len(STEPS)
    assert '== failed or out of time: tests\n' in done.stdout


def test_some_steps(run):
    done, asked = run(STEPS='operator demo')
    assert done.returncode == 0 and len(asked) == 3


def test_no_time(run):
    done, asked = run(BUDGET='5')
    assert done.returncode == 1 and len(asked) == 1
    assert done.stdout.endswith(f'out of time: {" ".join(STEPS)}\n')


def test_no_gpu(run, tmp_path):
    done, asked = run('cuda.is_available')
    assert done.returncode == 2 and len(asked) == 1
    assert 'sees no GPU' in done.stderr
    assert not (tmp_path / 'out').exists()


def test_tools_know_what_they_are_given(run, root, monkeypatch, capsys):
    """They find out that there is no GPU once they have read it all."""
    monkeypatch.syspath_prepend(str(root / 'tools/benchmarks'))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    _, asked = run()
    benchmarks = [command for command in asked if '--device' in command]
    assert len(benchmarks) == 4
    for tool, *arguments in benchmarks:
        name = os.path.basename(tool).removesuffix('.py')
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        with pytest.raises(SystemExit):
            __import__(name).main()
        assert 'torch sees no CUDA device' in capsys.readouterr().err
    for config in asked[5]:
        assert not config.startswith('configs/') or (root / config).is_file()
