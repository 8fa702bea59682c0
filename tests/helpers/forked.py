"""Python programs in processes that have imported the libraries already.

They are forked from a server that has imported the libraries, not pelk_mm, and
computed nothing: importing them alone takes longer than most programs. What is
about a fresh process, as what an import of theirs needs, is not for this.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

# For the server: also what a program imports only when it needs it.
import matplotlib.backends.backend_agg  # noqa: F401
import mmengine.analysis
import mmengine.runner  # noqa: F401
import mmpretrain.apis  # noqa: F401
import torch
import torch._dynamo
import torch.utils.flop_counter

from tests.conftest import ROOT
from tests.helpers.short_logs import short_logs

if find_spec('mmcv._ext'):  # with mmcv-lite pelk_mm has to come first
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload([__name__])


def start(
    program: str | Path,
    *arguments: object,
    out: Path,
    err: Path | None = None,
    cwd: Path = ROOT,
    environment: Mapping[str, str] = {},
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start a file of Python as ``python PROGRAM ARGUMENTS`` does.

    Args:
        program (str | Path): The file, from ``cwd``.
        *arguments (object): What follows on the command line.
        out (Path): Where it prints to.
        err (Path, optional): And its errors. Default: as ``out``.
        cwd (Path): Where it runs. Default: the repository.
        environment (Mapping[str, str]): More variables. Default: {}.
        before (Callable, optional): Called there before it starts; a
            function of a module, or a ``partial`` of one. Default: None.
    """
    process = CONTEXT.Process(
        target=_live,
        args=(
            [str(program), *map(str, arguments)],
            out,
            err or out,
            cwd,
            {**os.environ, **environment},
            before,
        ),
        daemon=True,
    )
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for the end; the exit code, negative for a signal."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f'did not end within {seconds} s')
    return process.exitcode


def run(
    program: str | Path, *arguments: object, **options
) -> subprocess.CompletedProcess:
    """As ``start``, to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, 'out'), Path(folder, 'err')
        process = start(program, *arguments, out=out, err=err, **options)
        status = finish(process, seconds=240)
        return subprocess.CompletedProcess(
            [program, *arguments], status, out.read_text(), err.read_text()
        )


def _live(
    command: list[str],
    out: Path,
    err: Path,
    cwd: Path,
    environment: dict[str, str],
    before: Callable[[], None] | None,
) -> None:
    torch.set_num_threads(1)
    # The collector would look through all of the libraries time and again.
    gc.freeze()
    # A program starts others as it likes, which a daemon may not.
    multiprocessing.current_process()._config['daemon'] = False
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = command
    sys.path.insert(0, os.path.dirname(os.path.abspath(command[0])))

    with _printed_to(out, err), short_logs():
        if before is not None:
            before()
        runpy.run_path(command[0], run_name='__main__')


@contextlib.contextmanager
def _printed_to(out: Path, err: Path) -> Iterator[None]:
    """Up to how it ends. What follows, as coverage's own files, has no part in
    a run and is not bound by a limit that was its trouble."""
    streams = {number: os.dup(number) for number in (1, 2)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Appending, since both may be the same file.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, flags), number)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        _say(end.code)
        raise SystemExit(1) from None
    except BaseException:
        _say(traceback.format_exc())
        raise SystemExit(1) from None
    finally:
        _say('')
        for number, stream in streams.items():
            os.dup2(stream, number)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(text, end='\n' * bool(text), file=sys.stderr, flush=True)
