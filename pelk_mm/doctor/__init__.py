"""What is wrong with an environment, asked by ``python -m pelk_mm.doctor``.

Nothing here imports more than the standard library: what may be broken is
tried in other processes (:mod:`.processes`), by :mod:`.probes`.
"""
