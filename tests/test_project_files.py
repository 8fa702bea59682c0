"""What the workflows, the container and the citation name exists."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pelk_mm import __version__
from pelk_mm.doctor.stacks import TESTED

WORKFLOWS = ('docs', 'release', 'test')

pytestmark = pytest.mark.skipif(
    not (Path(__file__).parents[1] / '.github').exists(),
    reason='a source distribution has no workflows',
)


def steps(path):
    jobs = yaml.safe_load(path.read_text())['jobs'].values()
    for job in jobs:
        yield from job.get('steps', [job])


@pytest.fixture(scope='module')
def targets(root) -> set[str]:
    """Of the Makefile."""
    text = (root / 'Makefile').read_text()
    return set(re.findall(r'^([a-z][a-z-]*):', text, re.MULTILINE))


@pytest.mark.parametrize('name', WORKFLOWS)
def test_workflows_run_what_is_there(name, root, targets):
    for step in steps(root / f'.github/workflows/{name}.yml'):
        made = re.findall(r'\bmake ([a-z-]+)', step.get('run', ''))
        assert targets.issuperset(made), step
        used = step.get('uses', '')
        if used.startswith('./'):
            assert (root / used).is_file(), used
        elif used:
            # Of one version, not of a branch that moves.
            assert re.fullmatch(r'[\w./-]+@v\d+\.\d+\.\d+', used), used


def test_workflows_test_stacks_that_are_there(root, targets):
    text = (root / '.github/workflows/test.yml').read_text()
    jobs = yaml.safe_load(text)['jobs']
    stacks = jobs['stacks']['strategy']['matrix']['stack']
    assert targets.issuperset(stacks)
    pythons = jobs['test']['strategy']['matrix']['python']
    assert set(pythons) == {stack.python for stack in TESTED}


def test_all_workflows_are_looked_at(root):
    found = root.glob('.github/workflows/*')
    assert sorted(path.stem for path in found) == sorted(WORKFLOWS)


def test_the_container_runs_what_is_there(root, targets):
    text = (root / 'Dockerfile').read_text()
    commands = re.findall(r'^    .*make ([a-z-]+)$', text, re.MULTILINE)
    settings = json.loads(
        (root / '.devcontainer/devcontainer.json').read_text()
    )
    commands += re.findall('make ([a-z-]+)', settings['postCreateCommand'])
    assert len(commands) == 2 and targets.issuperset(commands)
    assert f' AS {settings["build"]["target"]}\n' in text
    folder = root / '.devcontainer'
    assert (folder / settings['build']['dockerfile']).is_file()


def test_one_version_is_named_everywhere(root):
    citation = yaml.safe_load((root / 'CITATION.cff').read_text())
    assert citation['version'] == __version__
    changes = (root / 'CHANGELOG.md').read_text()
    newest = re.search(r'^## (\d+\.\d+\.\d+)', changes, re.MULTILINE)
    assert newest and newest[1] == __version__
