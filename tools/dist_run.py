"""torchrun for ``dist_run.sh``, with a last line on what went wrong."""

import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
)

RESUME = (
    '. Every checkpoint that was saved is whole: the same command with '
    '--resume goes on from the newest'
)


def main() -> None:
    args = run.parse_args(sys.argv[1:])
    try:
        run.run(args)
    except ChildFailedError as error:
        training = args.training_script.endswith('train.py')
        sys.exit(f'error: {explain(error.failures, training)}')
    except SignalException as stop:
        print(f'stopped by {stop.sigval.name}', file=sys.stderr)
        sys.exit(128 + stop.sigval)


def explain(failures: dict[int, ProcessFailure], training: bool) -> str:
    """In one line what ended the run; failures are this machine's by rank."""
    rank, first = min(failures.items(), key=_order)
    where = f'process {rank} (pid {first.pid})'
    text = _recorded(first)
    if first.exitcode < 0 and not text:
        name = signal.Signals(-first.exitcode).name
        why = ', as when memory runs out' if name == 'SIGKILL' else ''
        return f'{where} was ended by {name}{why}{RESUME * training}'
    kind, _, message = text.partition(': ')
    if kind == 'LaunchError':
        return message
    if not text:
        ended = f'{where} ended with exit status {first.exitcode}'
        return f'{ended}; what it said is above'
    reason = text.strip().partition('\n')[0]
    ended = f'{where} failed with {reason}; its traceback is above'
    return ended + RESUME * training


def _recorded(failure: ProcessFailure) -> str:
    """What a script has recorded that it ended with, '' if nothing."""
    message = failure.error_file_data.get('message')
    return message['message'] if isinstance(message, dict) else ''


def _order(item: tuple[int, ProcessFailure]) -> tuple:
    """Causes before consequences.

    A process that is killed takes its peers with it: their connections break,
    or torchrun ends them by SIGTERM, and by SIGKILL where that does not help,
    as with one that hangs. Its peers say that they have waited too long.
    What has recorded an error ended by that, even if a thread of its process
    group has aborted it on the way out.
    """
    _, failure = item
    text = _recorded(failure)
    raised = failure.exitcode > 0 or text != ''
    return (
        failure.exitcode == -signal.SIGTERM,
        'timed out' not in text.lower(),
        raised and not text.startswith('LaunchError'),
        failure.exitcode == -signal.SIGKILL,
        failure.timestamp,
    )


if __name__ == '__main__':
    main()
