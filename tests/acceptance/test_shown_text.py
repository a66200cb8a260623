"""What people and models write, as a browser shows it on a Streamlit page: words, and nothing that acts."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from services.local import free_ports
from tests.support import ROOT, wait_until

#: Each would become an emoji, an icon, a link, a picture, a badge, a formula or another sign.
WRITTEN = [
    "a :smile: and :+1: and :-1: and :100: and :8ball:",
    "an icon :material/home: and :streamlit: here",
    "one <- two -> three <-> four -- five >= six <= seven ~= eight",
    "see www.evil.example and WWW.evil.example/path",
    "see http://evil.example/?q=1 and https://evil.example",
    "write me@evil.example or mailto:me.too@evil.example or xmpp:you@evil.example",
    "&#58;smile&#58; &colon;smile: www&period;evil.example me&commat;evil.example &lt;b&gt;",
    r"\[x](http://evil.example) \![x](http://evil.example/x.png) www\.evil.example \:smile: \<b>bold\</b>",
    "[x](http://evil.example) ![x](http://evil.example/x.png) [y]: http://evil.example <http://evil.example>",
    ":red[x] :small[y] ::name[z] $x$ $$y$$ `z` <b>bold</b> <img src=x> [^1]",
    "at 10:30:00 and 7:45, ratio 1:2, a:b",
]
#: An answer keeps these: they show as a sign and lead nowhere.
SIGNS = WRITTEN[2]
PAGE = """
import json, sys
import streamlit as st
from services.ui.text import answer_markdown, plain_markdown

for number, text in enumerate(json.load(open(sys.argv[1]))):
    with st.container(key=f"typed-{number}"):
        st.markdown(plain_markdown(text))
    with st.container(key=f"answered-{number}"):
        st.markdown(answer_markdown(text))
    st.button(plain_markdown(text), key=f"button-{number}")
st.markdown(answer_markdown("**Rest**\\n\\n- water\\n- sleep\\n\\n| a | b |\\n| -- | -- |\\n| 1 | 2 |"))
"""


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of Streamlit with all of it: as typed, as answered, and on buttons."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.py").write_text(PAGE)
    (folder / "texts.json").write_text(json.dumps(WRITTEN))
    (port,) = free_ports(1)
    flags = [f"--server.port={port}", "--server.headless=true", "--browser.gatherUsageStats=false"]
    command = [sys.executable, "-m", "streamlit", "run", *flags, str(folder / "page.py"), "--"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, str(folder / "texts.json")], cwd=ROOT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(f"{url}/_stcore/health"), 60, "for Streamlit")
        opened = browser.new_page()
        opened.goto(url)
        expect(opened.get_by_text("Rest", exact=True)).to_be_visible()
        yield opened
        opened.close()
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def shown(place: Locator) -> str:
    return place.inner_text().replace("\u2060", "").strip()


@pytest.mark.parametrize("number", range(len(WRITTEN)))
@pytest.mark.parametrize("kind", ["typed", "answered", "button"])
def test_it_is_shown_as_written_and_does_nothing(page: Page, number: int, kind: str) -> None:
    place = page.locator(f".st-key-{kind}-{number}")
    assert place.locator("a, img, b, code, .katex, [data-testid=stIconMaterial], [role=img]").count() == 0
    if (kind, WRITTEN[number]) != ("answered", SIGNS):
        assert shown(place) == WRITTEN[number]


def test_an_answer_keeps_its_paragraphs_lists_tables_and_emphasis(page: Page) -> None:
    assert page.locator("strong", has_text="Rest").count() == 1
    assert page.locator("li").all_inner_texts() == ["water", "sleep"]
    assert page.locator("td").all_inner_texts() == ["1", "2"]
