"""The gallery page: read as a file here, and clicked in a browser by `make test-browser`."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import pytest
from browser import Browser
from PIL import Image

from ddclip_cli.errors import UserError
from ddclip_cli.search.answer import Answer, Hit
from ddclip_cli.search.gallery import MAX_CARDS, gallery_page, write_gallery

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "'; window.hacked = 1; '",
    "../../etc/passwd",
    "a, b\nc",
    "</style></script><!--",
    "&lt;b&gt;",
]


def jpeg(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (112, 112), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def hits(ids, **more):
    return [Hit(rank, 1 - rank / 20, object_id, rank - 1, **more) for rank, object_id in enumerate(ids, 1)]


class Page(HTMLParser):
    """Tags with their attributes, in order, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._raw = "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._raw = False

    def handle_data(self, data):
        if not self._raw:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_every_query_score_and_picture_is_there():
    answers = [Answer("a white couch", hits(["one", "two"])), Answer("a lamp", hits(["three"])), Answer("nothing", [])]
    page = Page(gallery_page(answers, lambda row: jpeg() if row == 0 else None))
    for word in ("a white couch", "a lamp", "0.950", "0.900", "Nothing was found.", "no picture"):
        assert word in page.text
    cards = [button for button in page.all("button") if button.get("class") == "card"]
    assert [card["data-id"] for card in cards] == ["one", "two", "three"]
    sources = [image["src"] for image in page.all("img")]
    assert [base64.b64decode(source.removeprefix("data:image/jpeg;base64,")) for source in sources] == [jpeg(), jpeg()]


@pytest.mark.parametrize("text", HOSTILE)
def test_ids_and_queries_are_shown_and_are_no_markup(text):
    plain = Page(gallery_page([Answer("q", hits(["a"], name="n"))], lambda row: None))
    page = Page(gallery_page([Answer(text, hits([text], name=text))], lambda row: None))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    (card,) = [button for button in page.all("button") if button.get("class") == "card"]
    assert card["data-id"] == text
    assert " ".join(text.split()) in page.text


def test_the_page_needs_nothing_from_outside():
    text = gallery_page([Answer("q", hits(["a"] * 3, link="https://example.org/a"))], lambda row: jpeg())
    page = Page(text)
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() in policy


def test_too_many_pictures_are_refused(tmp_path):
    with pytest.raises(UserError, match=str(MAX_CARDS)):
        write_gallery(tmp_path / "a.html", [Answer("q", hits(["a"] * (MAX_CARDS + 1)))], lambda row: None)
    assert list(tmp_path.iterdir()) == []


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(tmp_path):
    answers = [
        Answer("a white couch", hits([f"couch-{n}" for n in range(9)], link="https://example.org/x")),
        Answer(HOSTILE[0], hits(HOSTILE, name="<b>name</b>")),
    ]
    path = tmp_path / "gallery.html"
    write_gallery(path, answers, lambda row: jpeg() if row % 2 == 0 else None)
    return path


@pytest.mark.browser
def test_a_click_shows_the_object_and_keys_walk_on(browser, page):
    browser.open(page)
    assert browser.run("document.querySelectorAll('.card').length") == 9 + len(HOSTILE)
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth === 112)")
    assert not browser.run("document.querySelector('dialog').open")
    browser.click(".card[data-id='couch-3']")
    assert browser.run("document.querySelector('dialog').open")
    assert browser.run("document.querySelector('dialog h3').textContent") == "couch-3"
    assert "rank 4, score 0.8000: a white couch" in browser.run("document.querySelector('.facts').textContent")
    assert browser.run("document.querySelector('dialog .page').href") == "https://example.org/x"
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('dialog h3').textContent") == "couch-4"
    assert browser.run("document.querySelector('dialog .stage img').naturalWidth") == 112
    browser.click("dialog .previous")
    assert browser.run("document.querySelector('dialog h3').textContent") == "couch-3"
    browser.click("dialog .copy")
    assert browser.run("new Promise(done => setTimeout(done, 200))") is None
    assert browser.run("document.querySelector('dialog .copy').textContent") == "Copied"
    browser.press("Escape")
    assert not browser.run("document.querySelector('dialog').open")


@pytest.mark.browser
def test_nothing_of_an_object_is_run_and_nothing_is_fetched(browser, page):
    browser.requests.clear()
    browser.errors.clear()
    browser.open(page)
    for number in range(9, 9 + len(HOSTILE)):
        browser.run(f"document.querySelectorAll('.card')[{number}].click()")
        assert browser.run("document.querySelector('dialog code').textContent") == HOSTILE[number - 9]
        assert browser.run("document.querySelector('dialog .page').hidden")
    assert browser.run("typeof window.hacked") == "undefined"
    assert browser.errors == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 820, 1600])
def test_it_fits_every_screen(browser, page, width):
    browser.open(page, width=width, height=800)
    assert browser.run("document.documentElement.scrollWidth") <= width
    columns = browser.run("getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    assert columns == {320: 2, 390: 2}.get(width, columns)
    browser.click(".card")
    assert browser.run("document.querySelector('dialog').getBoundingClientRect().width") <= width
    assert browser.run("document.querySelector('dialog').getBoundingClientRect().height") <= 800


@pytest.mark.browser
def test_it_is_dark_where_that_is_wanted(browser, page):
    def brightness(what: str) -> float:
        colour = browser.run(f"getComputedStyle(document.body).{what}")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    browser.open(page, dark=True)
    assert brightness("backgroundColor") < 40
    assert brightness("color") > 200
    browser.open(page)
    assert brightness("backgroundColor") > 220
    assert brightness("color") < 60
