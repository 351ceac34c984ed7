"""What docs/hooks.py makes for the site: tables of options, links. `make docs` checks the rest."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from comarl.algorithms import ALGORITHMS

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks():
    """The module, which is in no package."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["qmix", "race-matd3", "vm3-ac", "maven-ac"])
def test_the_table_of_a_page_has_every_option_with_its_sentence(hooks, name):
    text = hooks.options_table(name, "")
    rows = {
        row[0]: row[1:] for row in re.findall(r"^    \| `(.*?)` \| `(.*?)` \| (.*) \|$", text, re.M)
    }
    algorithm = ALGORITHMS[name].algorithm
    tops = {path.partition(".")[0] for path in rows}
    assert tops == {field.name for field in dataclasses.fields(algorithm)}
    assert all(sentence for _, sentence in rows.values())


def test_defaults_are_those_of_the_code_and_sources_those_of_the_page(hooks):
    section = "| field | default | source |\n|---|---|---|\n| `gamma` | 0.99 | a \\| b |\n"
    text = hooks.options_table("matd3", section)
    assert "| `gamma` | `0.99` | discount | a \\| b |" in text
    assert "| `replay.batch_size` | `128` |" in text


def test_presets_are_shown_by_what_they_change(hooks):
    assert hooks.changes(ALGORITHMS["vdn"].algorithm) == "`mixing` sum"
    text = hooks.options_table("qmix", "")
    assert "| `vdn` | `mixing` sum |" in text and "| `qmix` | `" not in text


@pytest.mark.parametrize(
    ("uri", "link", "expected"),
    [
        ("results.md", "![x](../results/smax/curves.png)", "![x](results/smax/curves.png)"),
        ("algorithms/qmix.md", "[x](../../results/smax/)", "[x](WHERE/tree/main/results/smax)"),
        ("contributing.md", "[x](docs/metrics.md#a)", "[x](metrics.md#a)"),
        ("index.md", "[x](../CHANGELOG.md)", "[x](changelog.md)"),
        ("tasks/smax.md", "[x](vm3-ac.md)", "[x](vm3-ac.md)"),
        ("index.md", "[x](#a) [y](https://z.org)", "[x](#a) [y](https://z.org)"),
        ("index.md", "[x](nowhere.md)", "[x](nowhere.md)"),
    ],
)
def test_links_of_the_repository_hold_on_the_site(hooks, uri, link, expected):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
    config = SimpleNamespace(extra={"repository": "WHERE"})
    if uri.startswith("algorithms/"):
        source = f"docs/{uri}"
        relinked = hooks.LINK.sub(lambda m: hooks.site_link(m, source, uri, config), link)
    else:
        relinked = hooks.on_page_markdown(link, page, config, None)
    assert relinked == expected
