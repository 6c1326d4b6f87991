"""Links between files of the repository: what README, CONTRIBUTING and the pages name is there."""

import re
from pathlib import Path

from tests.docs.test_reference import REFERENCE

ROOT = Path(__file__).parents[2]
CODE = re.compile(
    r"^( *)(`{3,}|~{3,})(?!\{(?:figure|image|note|tip|warning|admonition)).*?^\1\2`*$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|^\s*(?:`{3,}|:{3,})\{(?:figure|image)\} (\S+)", re.MULTILINE
)


def pages():
    """All Markdown that people write."""
    yield from sorted(ROOT.glob("*.md"))
    for folder in ("docs", "tests", "experiments"):
        yield from (path for path in sorted((ROOT / folder).rglob("*.md")) if "_build" not in path.parts)


def anchors(path):
    """Names of headings, as the forge and the site make them, and those that a page sets."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()).replace(" ", "-") for head in heads}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


def test_relative_links_lead_somewhere():
    generated = {ROOT / "docs" / "reference" / name for name in REFERENCE.pages()}
    broken, count = [], 0
    for page in pages():
        text = re.sub(r"`[^`\n]+`", "", CODE.sub("", page.read_text(encoding="utf-8")))
        for link in (one or other for one, other in LINK.findall(text)):
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = link.partition("#")
            target = (page.parent / place).resolve() if place else page
            count += 1
            is_there = target.exists() or target in generated
            if not is_there or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert count > 50
    assert not broken


def test_every_page_is_in_one_group_of_the_front_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    named = [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]
    folders = {line.removesuffix("/*") for line in named if line.endswith("/*")}
    assert len(set(named)) == len(named)
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        if name != "index" and "_build" not in path.parts:
            assert name in named or name.rpartition("/")[0] in folders, name
