"""Notebooks on their way into the site: a page each, with what they show."""

import json
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config) -> None:
    for notebook in Path(config.docs_dir).glob('*.ipynb'):
        cells = json.loads(notebook.read_text())['cells']
        page = '\n\n'.join(map(_markdown, cells))
        files.append(
            File.generated(config, f'{notebook.stem}.md', content=page)
        )


def on_page_markdown(markdown, **_) -> str:
    return markdown.replace('.ipynb)', '.md)')


def _markdown(cell) -> str:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
        return source
    shown = [f'```python\n{source}\n```']
    for output in cell['outputs']:
        if 'text' in output:
            shown.append(f'```text\n{"".join(output["text"])}```')
        else:
            png = output['data']['image/png'].strip()
            shown.append(f'![output](data:image/png;base64,{png})')
    return '\n\n'.join(shown)
