"""Lets torch share the cores with other programs: imported before torch.

torch's threads on a CPU spin while they wait for each other. Where another
program needs their cores, a training takes ten times as long that way, and so
do two at once. With a short spin they soon sleep: libgomp takes the same count
where it has more threads than cores. What that costs is in docs/training.md.
"""

import os

if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
    os.environ['GOMP_SPINCOUNT'] = '1000'
