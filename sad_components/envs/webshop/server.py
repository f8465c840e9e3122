"""WebShop's own server by URL: the same actions, its pages and its reward."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import quote

import httpx

from sad_components.envs.protocol import NoSuchTask, Outcome
from sad_components.envs.webshop.shop import BUY, SUBPAGES, Page, Place, Receipt, Shop

_SCORE = re.compile(r"Your score \(min 0\.0, max 1\.0\)\s*:?\s*(?P<score>\d+(?:\.\d+)?)")
_INSTRUCTION = re.compile(r"Instruction:\s*(?P<text>.+?)\s*\[Search\]", re.DOTALL)
_UNSEEN = frozenset({"script", "style", "title", "head"})


class WebShopServerEnvironment(Shop):
    """Plays at a running WebShop server (``web_agent_site.app``); tasks are ``fixed_0``, ..

    Args:
        url: of the server, for example ``http://localhost:3000``.
        max_steps: actions after which an episode ends without a purchase.
        timeout: seconds that a page may take.
    """

    name = "webshop_server"

    def __init__(self, url: str, max_steps: int = 15, timeout: float = 30.0) -> None:
        super().__init__(max_steps)
        self._url = url.rstrip("/")
        self._client = httpx.Client(timeout=timeout, follow_redirects=True, trust_env=False)
        self._session = self._instruction = ""

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        if count is None:
            raise NoSuchTask("a WebShop server does not tell its tasks: say how many you want")
        return [f"fixed_{n}" for n in range(seed, seed + count)]

    def _start(self, task: str) -> str:
        self._session = task
        opened: Outcome = self._enter(Place())
        match = _INSTRUCTION.search(opened.observation)
        self._instruction = " ".join(match["text"].split()) if match else ""
        return opened.observation

    def _show(self, place: Place) -> Page:
        return read_page(self._get(self._path(place)), can_search=place.kind == "search")

    def _buy(self, place: Place) -> Receipt:
        path = f"done/{self._session}/{place.asin}/{_quoted(place.options)}"
        text = read_page(self._get(path)).text
        match = _SCORE.search(text)
        if match is None:
            raise ValueError(f"the server's last page tells a score; got {text[:200]!r}")
        return Receipt(text, float(match["score"]), {})

    def _path(self, place: Place) -> str:
        if place.kind == "search":
            return self._session
        query = quote("+".join(place.query.split()), safe="+")
        if place.kind == "results":
            return f"search_results/{self._session}/{query}/{place.number}"
        where = f"{self._session}/{place.asin}/{query}/{place.number}"
        if place.kind == "item":
            return f"item_page/{where}/{_quoted(place.options)}"
        return f"item_sub_page/{where}/{place.subpage}/{_quoted(place.options)}"

    def _get(self, path: str) -> str:
        response = self._client.get(f"{self._url}/{path}")
        response.raise_for_status()
        return response.text

    @property
    def task_sentence(self) -> str:
        return self._instruction

    def close(self) -> None:
        self._client.close()


def read_page(html: str, can_search: bool = False) -> Page:
    """A page of WebShop's as text, with what can be clicked in brackets.

    Args:
        html: as served.
        can_search: it is the page with the search bar.
    """
    reader = _PageReader()
    reader.feed(html)
    reader.close()
    return Page(
        "\n".join(reader.lines),
        tuple(b for b in reader.buttons if b in (*SUBPAGES, BUY) or not b[:1].isdigit()),
        tuple(reader.products),
        tuple(reader.options),
        can_search,
    )


class _PageReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.buttons: list[str] = []
        self.products: list[str] = []
        self.options: list[tuple[str, str]] = []
        self._open: list[tuple[str, str]] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        if tag in _UNSEEN:
            self._hidden += 1
        if tag == "input" and about.get("type") == "radio":
            self.options.append((about.get("name") or "", about.get("value") or ""))
        if tag in ("button", "label", "a"):
            classes = (about.get("class") or "").split()
            role = "product" if "product-link" in classes else tag
            self._open.append((tag, role))

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._hidden = max(0, self._hidden - 1)
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or self._hidden:
            return
        role = self._open[-1][1] if self._open else ""
        if role == "product":
            self.products.append(text)
        elif role == "button":
            self.buttons.append(text)
        self.lines.append(f"[{text}]" if role in ("product", "button", "label") else text)


def _quoted(options: tuple[tuple[str, str], ...]) -> str:
    """The options as WebShop's routes take them: a Python dict's text."""
    return quote(str(dict(options)), safe="")
