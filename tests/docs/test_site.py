"""The built documentation, in a real browser and link by link: ``BAAL_JAX_SITE=docs/_build/html`` says where it is."""

import functools
import os
import re
import threading
import urllib.parse
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import browser

SITE = os.environ.get("BAAL_JAX_SITE")
pytestmark = pytest.mark.skipif(not SITE, reason="no built site: BAAL_JAX_SITE names none")
PAGES = ["index", "tutorials/01_first_loop", "reference/index", "reference/baal_jax.heuristics", "gallery/selections"]
PAGES += ["gallery/posteriors", "how_the_pieces_fit"]


TOLD = re.compile(r"\[PST\]: (Changed to auto|Scrolled)")  # what the theme says of its work


class Handler(SimpleHTTPRequestHandler):
    """Serves the site; a page that is asked for with ``?look`` looks at itself."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not self.path.endswith("?look"):
            return super().do_GET()
        content = browser.looking(path.read_text(encoding="utf-8")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return self.wfile.write(content)

    def log_message(self, *arguments):
        """Silent."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    browser.start(tmp_path_factory.mktemp("browser"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("width", "mode"), [(390, "light"), (1280, "light"), (1280, "dark")])
@pytest.mark.parametrize("page", PAGES)
def test_a_browser_shows_it_without_a_fault(address, page, width, mode, tmp_path):
    options = ["--dump-dom", *(["--blink-settings=preferredColorScheme=0"] if mode == "dark" else [])]
    for mark in browser.NEEDED:
        if mark.args[0]:
            pytest.skip(mark.kwargs["reason"])
    plain = browser.browse(f"{address}/{page}.html", tmp_path, width, *options)
    said = [line for line in plain.stderr.splitlines() if "CONSOLE" in line and not TOLD.search(line)]
    assert said == []
    looked = browser.browse(f"{address}/{page}.html?look", tmp_path, width, *options)
    assert f'data-theme="{mode}"' in looked.stdout
    assert browser.seen(looked.stdout) == [0, [], []]


class Links(HTMLParser):
    """What a page links to, loads, and can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.names = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names |= {found.get("id"), found.get("name")} - {None}
        if tag == "a":
            self.links.append(found.get("href") or "")
        elif tag in ("script", "img", "link", "iframe", "source"):
            self.loads.append(found.get("src") or found.get("href") or "")


def _pages():
    paths = (path for path in sorted(Path(SITE).resolve().rglob("*.html")) if "_static" not in path.parts)
    return {path: Links(path.read_text(encoding="utf-8")) for path in paths}


def test_no_link_is_broken_and_nothing_comes_from_another_host():
    pages, broken, foreign = _pages(), [], []
    assert len(pages) > 50
    for path, page in pages.items():
        for link in {*page.links, *page.loads}:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                foreign += [f"{path.name}: {link}"] if link in page.loads and parts.scheme != "data" else []
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            name = urllib.parse.unquote(parts.fragment)
            if not target.exists() or (name and target in pages and name not in pages[target].names):
                broken.append(f"{path.name}: {link}")
    for path in Path(SITE).rglob("*.css"):
        foreign += [f"{path.name}: {url}" for url in re.findall(r"url\(['\"]?((?:https?:)?//[^)]*)", path.read_text())]
    assert (broken, foreign) == ([], [])
