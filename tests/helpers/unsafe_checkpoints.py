"""Checkpoints that nobody should load, for the tests of what loads them."""

import os
import pickle
from pathlib import Path

import torch


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def poison(path: Path, marker: Path, contents: dict | None = None) -> Path:
    """Save a checkpoint, whole but for what runs when it is unpickled."""
    torch.save(dict(contents or {}, evil=Payload(marker)), path)
    return path


def detonate(path: Path, marker: Path) -> None:
    """Show that the payload works: a marker that cannot appear is no test."""
    assert not marker.exists(), 'the payload was run'
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.rmdir()


#: How the payload is hidden, by what may be said of it.
HIDEOUTS = {
    'value': lambda payload: dict(state_dict={}, meta=payload),
    'key': lambda payload: {payload: 1},
    'weight': lambda payload: dict(state_dict={'a.weight': payload}),
    'bare': lambda payload: payload,
    'nested': lambda payload: dict(meta=[dict(x=(1, [payload]))]),
}


def write_plain_pickle(path: Path, marker: Path) -> None:
    """As ``pickle.dump`` writes it, without anything of torch."""
    with open(path, 'wb') as file:
        pickle.dump(dict(state_dict=Payload(marker)), file, protocol=2)
