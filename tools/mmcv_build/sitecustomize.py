"""Lets mmcv 2.1.0 be built with Python 3.13, from a folder on PYTHONPATH.

Its ``setup.py`` executes a file and reads what that defined from ``locals()``.
From Python 3.13 on these are a copy (PEP 667): ``KeyError: '__version__'``.
"""

import builtins
import sys

execute = builtins.exec


def execute_in_caller(source, *namespaces, **options):
    """``exec``; without namespaces it defines the caller's names."""
    caller = sys._getframe(1)
    if not namespaces and 'globals' not in options:
        namespaces = caller.f_globals, caller.f_locals
    execute(source, *namespaces, **options)


builtins.exec = execute_in_caller
