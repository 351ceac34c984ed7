"""What the site has besides what stands in docs/: tables made from the code, files from elsewhere.

- On an algorithm's page, below the settings that its paper fixes, a table of every option: its
  default from the code, what it does from the sentence under the field, its source from the page.
- On the page of the reference, what `comarl` itself offers, by the docstrings in the code.
- `CHANGELOG.md` and `CONTRIBUTING.md` are pages. Pictures of `results/` are copied; links to other
  files of the repository lead to where it is kept.
"""

import dataclasses
import functools
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files from elsewhere."""
    for page, source in FROM_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for picture in (ROOT / "results").rglob("*.png"):
        name = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page with its made table, and with links that hold on the site."""
    uri = page.file.src_uri
    if uri.startswith("algorithms/") and not uri.endswith("index.md"):
        markdown = with_options(markdown, Path(uri).stem)
    if uri == "api.md":
        markdown = markdown.replace("%public%", public_names())
    source = FROM_ROOT.get(uri, f"docs/{uri}")
    relink = functools.partial(site_link, source=source, uri=uri, config=config)
    return LINK.sub(relink, markdown)


def site_link(match: re.Match[str], source: str, uri: str, config: MkDocsConfig) -> str:
    """A link of a file of the repository, as the page that it becomes has it."""
    mark, text, target = match.groups()
    path, hash_, anchor = target.partition("#")
    if not path or ":" in path:
        return match[0]
    meant = os.path.normpath(os.path.join(os.path.dirname(source), path))
    if not (ROOT / meant).exists():
        return match[0]  # mkdocs names it, and --strict fails
    pages = {root: page for page, root in FROM_ROOT.items()}
    if meant in pages:
        inside = pages[meant]
    elif meant.startswith("docs/"):
        inside = meant.removeprefix("docs/")
    elif meant.endswith(".png"):
        inside = meant
    else:
        kind = "tree" if (ROOT / meant).is_dir() else "blob"
        return f"{mark}[{text}]({config.extra['repository']}/{kind}/main/{meant}{hash_}{anchor})"
    inside = os.path.relpath(inside, os.path.dirname(uri) or ".")
    return f"{mark}[{text}]({inside}{hash_}{anchor})"


def public_names() -> str:
    """What `comarl` offers: functions and what they return, then protocols and data, each by its
    docstring; and the names of the classes of algorithms and tasks, which have pages."""
    import comarl

    offered = {name: getattr(comarl, name) for name in comarl.__all__}
    named = {name: x for name, x in offered.items() if callable(x)}
    of = lambda module: [n for n, x in named.items() if x.__module__.startswith(module)]
    types, algorithms = of("comarl.types"), of("comarl.algorithms.")
    tasks = [name for name in of("comarl.envs.") if inspect.isclass(named[name])]
    functions = [name for name in named if name not in {*types, *algorithms, *tasks}]
    functions.sort(key=lambda name: place(named[name]))
    describe = lambda names: "\n\n".join(f"::: {named[n].__module__}.{n}" for n in names)
    code = lambda names: ", ".join(f"`{name}`" for name in names)
    return f"""
## Functions and what they return

{describe(functions)}

## Algorithms and tasks as values

Each is a frozen dataclass, whose fields are on the page of the algorithm or the task:
`comarl.Qmix(hidden=128)`.

Algorithms: {code(algorithms)}.

Tasks: {code(tasks)}.

## Protocols and data

{describe(types)}
"""


def place(value: Any) -> tuple[bool, bool, int]:
    """Where something stands in a list: functions before classes, those of the front door first."""
    line = inspect.getsourcelines(value)[1]
    return inspect.isclass(value), value.__module__ != "comarl.api", line


def with_options(markdown: str, name: str) -> str:
    """A page whose section on hyperparameters ends with a table of every option."""
    head, title, rest = markdown.partition("## Hyperparameters\n")
    section, end, rest = rest.partition("\n## ")
    return f"{head}{title}{section.rstrip()}\n\n{options_table(name, section)}\n{end}{rest}"


def options_table(name: str, section: str) -> str:
    """The folded tables of every option of a page's algorithms and of what its presets change."""
    from comarl.algorithms import ALGORITHMS

    module = f"comarl.algorithms.{name.replace('-', '_')}"
    named = {name: entry.algorithm for name, entry in ALGORITHMS.items()}
    own = {name: x for name, x in named.items() if type(x).__module__ == module}
    kinds = list(dict.fromkeys(map(type, own.values())))
    sources, tables = hand_written_sources(section), []
    for kind in kinds:
        title = f"Every option of {kind.__name__} and its default"
        rows = [
            (f"`{path}`", f"`{default}`", sentence, source_of(path, sources))
            for path, default, sentence in fields(kind())
        ]
        tables.append(folded(title, ("option", "default", "what it does", "source"), rows))
    rows = [(f"`{name}`", changes(x)) for name, x in own.items() if x != type(x)()]
    if rows:
        tables.append(folded("What each preset changes", ("preset", "options"), rows))
    return "\n".join(tables)


def changes(preset: Any) -> str:
    """In which options a preset differs from the defaults of its class."""
    usual = {path: default for path, default, _ in fields(type(preset)())}
    set_here = {path: value for path, value, _ in fields(preset) if usual.get(path) != value}
    return ", ".join(f"`{path}` {value}" for path, value in set_here.items())


def folded(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table that opens by a click. A column that is empty in every row is left out."""
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    line = lambda row: f"    | {' | '.join(row[i].replace('|', chr(92) + '|') for i in used)} |"
    head = [f'??? note "{title}"', "", line(columns), line(("---",) * len(columns))]
    return "\n".join([*head, *map(line, rows), ""])


def source_of(path: str, sources: dict[str, str]) -> str:
    """What the page says of a field, or of the field that it is a part of."""
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return sources.get(path, "")


def fields(settings: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """The dotted path of each field, its default and its sentence; of settings made of settings,
    the fields of each."""
    for field in dataclasses.fields(settings):
        value, path = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{path}.")
        else:
            yield path, text_of(value), sentence_under(type(settings), field.name)


def text_of(value: Any) -> str:
    """A default as a reader writes it."""
    if isinstance(value, tuple):
        return " ".join(map(text_of, value)) or "none"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def sentence_under(owner: type, name: str) -> str:
    """The sentence under a field, wherever the class has it from."""
    for kind in owner.__mro__:
        if name in inspect.get_annotations(kind):
            found = re.search(
                rf'^    {name}: .*?\n    """(.*?)"""', inspect.getsource(kind), re.M | re.S
            )
            return " ".join(found[1].split()) if found else ""
    return ""


def hand_written_sources(section: str) -> dict[str, str]:
    """field -> its source, from the first table of a section whose last column is `source`."""
    sources: dict[str, str] = {}
    column = None
    for line in section.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if "source" in cells:
            column = cells.index("source")
        elif not cells:
            column = None
        elif column is not None and column < len(cells) and "---" not in line:
            for name in re.findall(r"`([a-z][\w.]*)`", cells[0]):
                sources.setdefault(name, cells[column].replace("\\|", "|"))
    return sources
