"""The command ``pelk``."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from pelk_mm import __version__, cli
from tests.conftest import ROOT


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_every_command_has_a_tool(name):
    program, *options, tool, last = cli.call([*name.split(), '--help'])
    assert last == '--help'
    if options:
        assert find_spec(tool)
    else:
        assert tool.startswith(f'{ROOT}/pelk_mm/.mim/tools/')
        assert (cli.TOOLS / tool).is_file()
    assert program == ('/bin/bash' if tool[-3:] == '.sh' else sys.executable)


def test_every_tool_has_a_command():
    known = {tool for tool, _ in cli.COMMANDS.values()}
    others = {'install.sh', 'wheels.sh', 'share_cores.py'}
    others |= {'dist_run.sh', 'dist_run.py'}
    others |= {'mmcv_build/cxx.sh', 'mmcv_build/sitecustomize.py'}
    for path in cli.TOOLS.glob('**/*.[ps][yh]'):
        tool = str(path.relative_to(cli.TOOLS))
        assert tool in known | others or tool.startswith('benchmarks/')


@pytest.mark.parametrize(
    ('words', 'meant'),
    [
        ('trian x.py', 'did you mean train?'),
        ('exprt onnx', 'did you mean export onnx?'),
        ('export', 'did you mean export onnx or export torch?'),
        ('qqq', "there is no command 'qqq' (pelk --help"),
    ],
)
def test_unknown_command(words, meant):
    with pytest.raises(SystemExit) as stop:
        cli.call(words.split())
    assert meant in stop.value.code


def test_usage_is_narrow():
    assert max(map(len, cli.usage().splitlines())) <= 79


def test_it_starts_where_nothing_can_be_imported():
    """And starts the tool with what it was given."""
    code = """
        import os, sys
        sys.modules.update(torch=None, mmengine=None)
        sys.argv = ['/bin/pelk', 'doctor', '--json']
        os.execv = lambda program, command: print(command[1:])
        from pelk_mm.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, '-c', '\n'.join(map(str.strip, code.splitlines()))],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == "['-m', 'pelk_mm.doctor', '--json']\n", done.stderr


def test_a_clone_has_it_as_a_module():
    """Python without packages, so without torch, starts it."""
    done = subprocess.run(
        [sys.executable, '-S', '-m', 'pelk_mm.cli', '--version'],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == f'pelk_mm {__version__}\n', done.stderr
