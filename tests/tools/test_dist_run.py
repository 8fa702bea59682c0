"""The last line of dist_train.sh names the cause, not what followed."""

import json
import runpy
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.conftest import ROOT


@pytest.fixture(scope='module')
def explain():
    return runpy.run_path(str(ROOT / 'tools/dist_run.py'))['explain']


@pytest.fixture
def failure(tmp_path):
    """A process that failed, and what it has recorded."""

    def make(
        pid: int, exitcode: int, message: str | None = None, timestamp: int = 0
    ) -> ProcessFailure:
        path = Path(tmp_path, f'{pid}.json')
        if message is not None:
            path.write_text(
                json.dumps(
                    dict(
                        message=dict(
                            message=message,
                            extraInfo=dict(timestamp=timestamp),
                        )
                    )
                )
            )
        return ProcessFailure(
            local_rank=pid, pid=pid, exitcode=exitcode, error_file=str(path)
        )

    return make


def test_a_kill_comes_before_what_it_causes(explain, failure):
    line = explain(
        {
            0: failure(10, 1, 'RuntimeError: Connection closed by peer', 5),
            1: failure(11, -9),
            2: failure(12, -15),
        },
        training=True,
    )
    assert line.startswith(
        'process 1 (pid 11) was ended by SIGKILL, as when memory runs out'
    )
    assert '--resume' in line


def test_an_abort_behind_an_error_is_not_the_cause(explain, failure):
    """As of a thread that still frees tensors while Python ends."""
    ended = {0: failure(10, -6, 'KeyError: x', 4)}
    line = explain(ended, training=True)
    assert line.startswith('process 0 (pid 10) failed with KeyError: x;')
    ended[0] = failure(10, -6, 'RuntimeError: Connection closed by peer', 5)
    ended[1] = failure(11, 1, 'KeyError: y', 4)
    line = explain(ended, training=True)
    assert line.startswith('process 1 (pid 11) failed with KeyError: y;')


def test_a_message_is_repeated(explain, failure):
    line = explain(
        {
            0: failure(10, 1, 'RuntimeError: Connection closed by peer', 4),
            1: failure(11, 1, 'LaunchError: the disk: is full', 5),
        },
        training=True,
    )
    assert line == 'the disk: is full'


def test_the_first_error_is_the_cause(explain, failure):
    line = explain(
        {
            0: failure(10, 1, 'RuntimeError: Connection closed by peer', 5),
            1: failure(11, 1, 'KeyError: x', 4),
            2: failure(12, -15),
        },
        training=False,
    )
    assert line == (
        'process 1 (pid 11) failed with KeyError: x; its traceback is above'
    )


def test_a_process_that_has_recorded_nothing(explain, failure):
    assert explain({0: failure(10, 2)}, training=True) == (
        'process 0 (pid 10) ended with exit status 2; what it said is above'
    )


def test_one_that_hangs_is_killed_last(explain, failure):
    line = explain(
        {
            0: failure(10, 1, 'RuntimeError: Timed out waiting 20000ms', 4),
            1: failure(11, -9),
        },
        training=False,
    )
    assert line == (
        'process 0 (pid 10) failed with RuntimeError: Timed out '
        'waiting 20000ms; its traceback is above'
    )
    assert 'process 0 (pid 12) was ended by SIGABRT' in explain(
        {0: failure(12, -6), 1: failure(11, -9)}, training=False
    )
