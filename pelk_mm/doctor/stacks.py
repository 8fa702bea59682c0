"""Which versions the test suite, or parts of it, ran with together.

``docs/versions.md`` says how much of it passed; a test holds the two together.
"""

from __future__ import annotations

from typing import NamedTuple


class Stack(NamedTuple):
    """Releases as they are named in commands."""

    python: str
    torch: str
    numpy: str
    packages: str  # a family of pelk_mm.distributions


#: The first is what `make install` installs.
TESTED = (
    Stack('3.11', '2.14.1', '2.2.6', 'openmmlab'),
    Stack('3.10', '2.14.1', '2.2.6', 'openmmlab'),
    Stack('3.12', '2.14.1', '2.2.6', 'openmmlab'),
    Stack('3.13', '2.14.1', '2.2.6', 'openmmlab'),
    Stack('3.11', '2.14.1', '2.4.6', 'openmmlab'),
    Stack('3.11', '2.14.1', '2.2.6', 'onedl'),
    Stack('3.11', '2.10.0', '2.2.6', 'openmmlab'),
    Stack('3.11', '2.15.0', '2.4.6', 'openmmlab'),
    Stack('3.10', '2.4.1', '1.26.4', 'openmmlab'),
)


def release(version: str) -> tuple[int, int]:
    """``(2, 10)`` of ``'2.10.0+cpu'``; raises ValueError if it is none."""
    major, minor = version.split('.')[:2]
    return int(major), int(minor)


def ends(field: str) -> tuple[str, str]:
    """The oldest and the newest release of 'python' or 'torch' in TESTED."""
    releases = [getattr(stack, field) for stack in TESTED]
    return min(releases, key=release), max(releases, key=release)
