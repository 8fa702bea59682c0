"""Docstrings on their way into the site: what Sphinx writes, as Markdown."""

import re
from contextlib import suppress

from griffe import Extension, NameResolutionError

_ROLE = re.compile(r':(?:class|data|func|meth|mod):`~?\.?([\w.]+)`')
_LINK = re.compile(r'`([^`<]+?)\s+<(https://[^>]+)>`_')


class Markdown(Extension):
    """Names of the API become references, and links links."""

    def on_instance(self, *, obj, **_) -> None:
        if obj.docstring is None:
            return

        def reference(role: re.Match) -> str:
            path = role[1]
            with suppress(NameResolutionError):
                path = obj.resolve(path)
            name = path.rpartition('.')[2]
            # Optional: some are of other packages, or private.
            return (
                f'<autoref identifier="{path}" optional>'
                f'<code>{name}</code></autoref>'
            )

        text = _ROLE.sub(reference, obj.docstring.value)
        text = _LINK.sub(r'[\1](\2)', text)
        obj.docstring.value = text.replace('Example:\n', 'Examples:\n')
