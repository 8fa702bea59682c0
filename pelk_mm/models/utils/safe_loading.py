"""Reading checkpoint files: the one place where it is done.

A checkpoint is a pickle, and a pickle can run any code. What is read here is
read by torch's restricted unpickler, which builds tensors and plain values
only, after the checksums in the file have shown that it is what was written.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ...utils.unpickling import everything_is_trusted, weights_only

#: How torch's files start: zip archives, and pickles before torch 1.6.
_ZIP, _PICKLE = b'PK\x03\x04', b'\x80'
#: What torch's restricted unpickler says of objects that it does not build.
_OBJECTS = re.compile(
    r'GLOBAL (?P<name>[\w.]*\w)|unrecognized function|'
    r'unallowed class|Can only build'
)


class CheckpointError(RuntimeError):
    """A file is no whole checkpoint; the message names it and says why."""


class UnsafeCheckpointError(CheckpointError):
    """A file holds Python objects, and loading them could run code."""


def load_file(
    checkpoint: str | Path, *, mmap: bool = False, trust: bool = False
) -> Any:
    """Read a checkpoint file to the CPU.

    Its checksums are compared, which torch does not do: a bit that flipped
    on a disk would otherwise be another weight. Files that torch wrote in
    the format before 1.6, or with ``compute_crc32`` off, have none.

    Args:
        checkpoint (str | Path): A local path, or a URL that mmengine loads.
        mmap (bool): Leave tensors of a local file on disk until they are
            used. Default: False.
        trust (bool): Run the code that may be in the file. Default: False,
            unless the environment says
            ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``.

    Returns:
        Any: What was saved.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        UnsafeCheckpointError: If it holds Python objects.
        CheckpointError: If it is not whole.
    """
    name = str(checkpoint)
    try:
        with weights_only(not trust):
            if '://' in name:
                return CheckpointLoader.load_checkpoint(
                    name, map_location='cpu'
                )
            return _load_local(Path(name).expanduser(), mmap, trust)
    except (CheckpointError, OSError):
        raise
    except UnpicklingError as error:
        raise _explain(name, error) from error
    except Exception as error:
        reason = str(error).strip().partition('\n')[0].rstrip('.')
        raise _damaged(name, f'{type(error).__name__}: {reason}') from error


def _load_local(path: Path, mmap: bool, trust: bool) -> Any:
    if not path.exists():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    if path.is_dir():
        raise IsADirectoryError(
            f'{path} is a folder, expected a checkpoint file in it'
        )
    with open(path, 'rb') as file:
        start = file.read(len(_ZIP))
    if not start:
        raise _damaged(path, 'it has 0 bytes')
    if start == _ZIP:
        status = path.stat()
        wrong = _wrong_sums(
            path.absolute(), status.st_size, status.st_mtime_ns
        )
        if wrong is not None:
            raise _damaged(path, wrong)
    elif not start.startswith(_PICKLE):
        raise _damaged(
            path,
            f'it starts with {start!r}, as nothing does '
            'that torch.save writes',
        )
    return torch.load(
        path,
        map_location='cpu',
        mmap=mmap and start == _ZIP,
        weights_only=not (trust or everything_is_trusted()),
    )


@lru_cache(maxsize=8)
def _wrong_sums(path: Path, size: int, modified: int) -> str | None:
    """Why a zip is not whole, None if every entry has its CRC-32.

    Once for a version of a file: tools read it several times.
    """
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != ZIP_STORED for entry in entries):
                return 'it has compressed entries, and torch writes none'
            # All of them are 0 where torch was told not to compute any.
            wrong = (
                archive.testzip()
                if any(entry.CRC for entry in entries)
                else None
            )
    except Exception as error:
        # A damaged directory can make zipfile seek to nowhere, or do anything.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        return 'its end is missing, or damaged'
    return None if wrong is None else f'the checksum of {wrong} is wrong'


def _damaged(name: str | Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f'{name} is not a whole checkpoint: {reason}. Copy it again from '
        'where it came from; a training goes on from its newest whole one '
        'with --resume'
    )


def _explain(name: str, error: UnpicklingError) -> CheckpointError:
    """Objects in the pickle, or bytes that are no pickle of tensors."""
    found = _OBJECTS.search(str(error))
    if found is None:
        return _damaged(name, 'it is no pickle of tensors and plain values')
    what = f' ({found["name"]})' if found['name'] else ''
    return UnsafeCheckpointError(
        f'{name} holds pickled Python objects{what}, which are not loaded '
        'because loading them can run code. Checkpoints saved with '
        "default_hooks.checkpoint = dict(type='SafeCheckpointHook') have "
        'none; of one that you trust, '
        'tools/model_converters/publish_model.py --trust keeps the weights'
    )


def read_state_dict(checkpoint: str) -> dict[str, Tensor]:
    """Read the weights of an mmengine checkpoint or a bare state dict.

    Args:
        checkpoint (str): Path or URL.

    Returns:
        dict[str, Tensor]: On the CPU, as named in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If it is not a checkpoint that loads safely.
    """
    return weights_of(read_checkpoint(checkpoint), checkpoint)


def read_checkpoint(checkpoint: str, trust: bool = False) -> dict:
    """Read a checkpoint without running code that may be in it.

    Args:
        checkpoint (str): Path or URL.
        trust (bool): Run that code after all. Default: False.

    Returns:
        dict: All of its contents, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is damaged, or does not load safely.
    """
    loaded = load_file(checkpoint, trust=trust)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f'{checkpoint} holds a {type(loaded).__name__}, expected a '
            'checkpoint or a state dict'
        )
    return dict(loaded)


def weights_of(checkpoint: Mapping, name: str) -> dict[str, Tensor]:
    """The state dict of a checkpoint, or the mapping itself if it is one.

    Args:
        checkpoint (Mapping): As read from a file.
        name (str): What to call it in an error.

    Returns:
        dict[str, Tensor]: As named in the file.

    Raises:
        RuntimeError: If there is no state dict of tensors in it.
    """
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    if not checkpoint or not all(
        isinstance(value, Tensor) for value in checkpoint.values()
    ):
        raise RuntimeError(f'{name} holds no state dict of tensors')
    return dict(checkpoint)
