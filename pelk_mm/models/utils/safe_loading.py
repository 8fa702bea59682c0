"""Reading checkpoint files: the one place where it is done.

A checkpoint is a pickle, and a pickle can run any code. What is read here is
read by torch's restricted unpickler, which builds tensors and plain values
only, after the checksums in the file have shown that it is what was written.

A command reads a checkpoint once, and its functions take the contents. For
those who know nothing but names, as mmengine, there is :class:`Checkpoints`.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from os import listdir
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from ...utils.trust import everything_is_trusted, weights_only

#: How torch's files start: zip archives, and pickles before torch 1.6.
_ZIP, _PICKLE = b'PK\x03\x04', b'\x80'
#: How a safetensors file goes on after the first half of its header's length,
#: which is never more than 100 MB.
_SAFETENSORS = b'\x00\x00\x00\x00{'
#: The mark of a folder in a zip. torch reads nothing of an entry that has it,
#: and zipfile does not look: memory that nobody wrote would be the weights.
_FOLDER = 0x10
#: A part of a model, or the list of the parts.
_SHARD = re.compile(r'(-\d{5}-of-\d{5}\.|\.index\.json$)')
#: What torch's restricted unpickler says of objects that it does not build.
_OBJECTS = re.compile(
    r'GLOBAL (?P<name>[\w.]*\w)|unrecognized function|'
    r'unallowed class|Can only build'
)
#: What :func:`read_checkpoint` takes contents from, while they are shared.
_shared: Checkpoints | None = None


class CheckpointError(RuntimeError):
    """A file is no whole checkpoint; the message names it and says why."""


class UnsafeCheckpointError(CheckpointError):
    """A file holds Python objects, and loading them could run code."""


def read_checkpoint(checkpoint: str | Path, trust: bool = False) -> dict:
    """Read a checkpoint, or a URL, without running code that may be in it.

    Its checksums are compared, which torch does not do: a bit that flipped
    on a disk would otherwise be another weight. Files that torch wrote in
    the format before 1.6, or with ``compute_crc32`` off, have none; nor have
    safetensors files, of which only the lengths are known.
    ``trust``, or ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``, runs it after all.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        UnsafeCheckpointError: If it holds Python objects.
        CheckpointError: If it is not whole, or holds no mapping.
    """
    name = str(checkpoint)
    if _shared is not None and not trust:
        return _shared.read(name)
    return _read(name, trust)


class Checkpoints:
    """What a run loads: the contents of checkpoints by name, each read once.

    A run looks into its checkpoints before mmengine, or a backbone with its
    ``init_cfg``, loads them by their names.
    """

    def __init__(self) -> None:
        self._contents: dict[str, dict] = {}

    def read(self, name: str) -> dict:
        """As :func:`read_checkpoint`, from the file the first time only."""
        if name not in self._contents:
            self._contents[name] = _read(name)
        return self._contents[name]

    def forget(self, name: str) -> None:
        """Let go of one's contents, if there are any."""
        self._contents.pop(name, None)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Have all others read from here; at the end, let go of everything.

        They are :func:`read_checkpoint`, and mmengine with local files.
        """
        from mmengine.runner import CheckpointLoader

        global _shared
        before = _shared, CheckpointLoader._schemes['']

        # mmengine logs the end of the name, and moves contents as it needs.
        def load_from_memory(name: str, map_location: Any) -> dict:
            return copy(self.read(name))

        _shared = self
        CheckpointLoader.register_scheme('', load_from_memory, force=True)
        try:
            yield
        finally:
            _shared, loader = before
            CheckpointLoader.register_scheme('', loader, force=True)
            self._contents.clear()


def _read(name: str, trust: bool = False) -> dict:
    try:
        with weights_only(not trust):
            if '://' in name and urlsplit(name).path.endswith('.safetensors'):
                contents = _read_file(_download(name), trust)
            elif '://' in name:
                contents = _load_address(name)
            else:
                contents = _read_file(Path(name).expanduser(), trust)
    except (CheckpointError, OSError):
        raise
    except UnpicklingError as error:
        raise _explain(name, error) from error
    except Exception as error:
        reason = str(error).strip().partition('\n')[0].rstrip('.')
        raise _damaged(name, f'{type(error).__name__}: {reason}') from error
    if not isinstance(contents, dict):
        raise CheckpointError(
            f'{name} holds a {type(contents).__name__}, expected a '
            'checkpoint or a state dict'
        )
    return contents


def _load_address(name: str) -> Any:
    """What mmengine finds there; it knows http, s3 and model zoos."""
    try:
        from mmengine.runner import CheckpointLoader
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f'{name} can be read by mmengine alone ({error}): pip install '
            'mmengine, or download the file and give its path'
        ) from error
    return CheckpointLoader.load_checkpoint(name, 'cpu')


def _download(url: str) -> Path:
    """The file of a URL, in torch's cache; it may be there already."""
    # On hubs, most files have the same name.
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    name = f'{digest}-{Path(urlsplit(url).path).name}'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path


def _read_file(path: Path, trust: bool) -> Any:
    if not path.exists():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    _refuse_shards(path)
    if path.is_dir():
        raise IsADirectoryError(
            f'{path} is a folder, expected a checkpoint file in it'
        )
    # Opened once: what is loaded is what was checked.
    with open(path, 'rb') as file:
        start = file.read(4 + len(_SAFETENSORS))
        if start.endswith(_SAFETENSORS):
            file.seek(0)
            return _parse_safetensors(path, file.read())
        if start.startswith(_ZIP):
            problem = _wrong_sums(file)
        elif not start:
            problem = 'it has 0 bytes'
        elif start.startswith(_PICKLE):
            problem = None
        else:
            problem = f'it starts with {start[:4]!r}, which torch never writes'
        if problem is not None:
            raise _damaged(path, problem)
        file.seek(0)
        safe = not (trust or everything_is_trusted())
        return torch.load(file, map_location='cpu', weights_only=safe)


def _refuse_shards(path: Path) -> None:
    """Raise a CheckpointError for a model that is in several files."""
    folder = path if path.is_dir() else path.parent
    named = _SHARD.search(path.name)
    if named or (path.is_dir() and any(map(_SHARD.search, listdir(path)))):
        raise CheckpointError(
            f'{path} is of a model in several files; join them with '
            'python -c "from glob import glob; from safetensors.torch import '
            'load_file, save_file; save_file({k: v for f in '
            f"glob('{folder}/*-of-*.safetensors') for k, v in "
            f"load_file(f).items()}}, '{folder}/whole.safetensors')\" and "
            f'read {folder}/whole.safetensors'
        )


def _parse_safetensors(path: Path, contents: bytes) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise CheckpointError(
            f'{path} is a safetensors file, and the package that reads it is '
            'missing: pip install safetensors'
        ) from error
    return load(contents)


def _wrong_sums(file: BinaryIO) -> str | None:
    """Why a zip is not whole, None if every entry has its CRC-32."""
    try:
        with ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != ZIP_STORED for entry in entries):
                return 'it has compressed entries, and torch writes none'
            if any(entry.external_attr & _FOLDER for entry in entries):
                return 'it has folders in it, and torch writes none'
            # All of them are 0 where torch was told not to compute any.
            summed = any(entry.CRC for entry in entries)
            wrong = archive.testzip() if summed else None
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
        'tools/model_converters/publish_model.py --trust keeps the weights, '
        'and from_convnext.py --trust those of a ConvNeXt'
    )


def weights_of(checkpoint: Mapping, name: str) -> dict[str, Tensor]:
    """The state dict of a checkpoint, or of itself; else a RuntimeError."""
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    tensors = [isinstance(value, Tensor) for value in checkpoint.values()]
    if not tensors or not all(tensors):
        raise RuntimeError(f'{name} holds no state dict of tensors')
    return dict(checkpoint)
