"""Builds ahead what the backends would build on first use.

``python -m pelk_mm.ops.backends`` prints what it does; its exit status is 0
also where a backend cannot be built, because the others work without it.
"""

from __future__ import annotations

from .base import BackendError
from .cpp import CppBackend


def main() -> None:
    """Open the library of the ``cpp`` backend and say where it is."""
    backend = CppBackend()
    try:
        backend.prepare()
    except BackendError as error:
        why = f'{type(error.__cause__).__name__}: {error.__cause__}'
        print(f"backend 'cpp' does not run, others will be used: {why}")
    else:
        library = backend.library
        print(
            f"backend 'cpp' runs with kernels for {library.instruction_set}: "
            f'{library.path}'
        )


if __name__ == '__main__':
    main()
