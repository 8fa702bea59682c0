"""Less to read: what is left out, and what is not."""

import warnings

from pelk_mm.utils.output import fewer_warnings


def warn(text: str, module: str = 'mmseg.models.builder', line: int = 1):
    warnings.warn_explicit(text, UserWarning, 'builder.py', line, module)


def test_warnings_that_nobody_can_act_on_are_left_out(recwarn):
    with fewer_warnings():
        warn('The draw is False, it means that the hook for visualization')
        warn('The draw is False, it means that the hook', 'mine')
        warn('The drawer is stuck')
    assert [str(w.message)[:10] for w in recwarn] == [
        'The draw i',
        'The drawer',
    ]
    assert recwarn[0].filename == 'builder.py'


def test_others_are_shown_once(recwarn):
    with fewer_warnings():
        for line in (1, 2):
            warn('Only 2 CPUs', line=line)
            with warnings.catch_warnings():
                # Changed filters make Python forget what it has shown.
                warnings.simplefilter('always')
        warn('Only 4 CPUs')
    assert [str(w.message) for w in recwarn] == ['Only 2 CPUs', 'Only 4 CPUs']
    warn('Only 2 CPUs')
    assert len(recwarn) == 3
