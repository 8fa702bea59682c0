"""Environments made up for the doctor."""

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import packaging
import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class MadeUp:
    """A virtual environment that holds what a test puts into it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / 'bin' / 'python'

    @property
    def site(self) -> Path:
        return next(self.folder.glob('lib/python*/site-packages'))

    def add_module(self, name: str, text: str = '') -> None:
        """Something to import."""
        package = self.site / name
        package.mkdir()
        (package / '__init__.py').write_text(text)

    def add_distribution(
        self, name: str, version: str = '1.0', requires: str = ''
    ) -> None:
        """What pip would know of."""
        folder = self.site / f'{name.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
            + (f'Requires-Dist: {requires}\n' if requires else '')
        )

    def run(self, *args: str, **variables: str) -> subprocess.CompletedProcess:
        """Its Python, in the repository, knowing nothing of this one."""
        return subprocess.run(
            [str(self.python), *args],
            cwd=ROOT,
            text=True,
            timeout=120,
            capture_output=True,
            env={'PATH': os.environ['PATH'], **variables},
        )

    def examine(self) -> dict:
        """The doctor's JSON, whose verdict its exit status repeats."""
        done = self.run('-m', 'pelk_mm.doctor', '--json')
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)
        assert found['ok'] == (done.returncode == 0)
        return found


@pytest.fixture
def made_up(tmp_path) -> MadeUp:
    """An empty environment, without even pip."""
    venv.create(tmp_path / 'environment', with_pip=False, symlinks=True)
    made = MadeUp(tmp_path / 'environment')
    assert Path(sys.prefix) != made.folder
    return made


@pytest.fixture
def with_packaging(made_up) -> MadeUp:
    """One in which versions can be compared."""
    (made_up.site / 'packaging').symlink_to(Path(packaging.__file__).parent)
    return made_up
