"""The page in a real browser: headless Chromium opens the file in light, in dark, on a phone and on paper."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
# A browser in a container has no sandbox of its own, and must not look for updates.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(report) -> str:
    return report.as_uri()


@contextmanager
def opened(browser, address: str, **options) -> Iterator[Page]:
    """The page; at the end it must have logged no error and asked for nothing but itself."""
    context = browser.new_context(**options)
    page = context.new_page()
    wrong, requests = [], []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    yield page
    page.wait_for_load_state("networkidle")
    assert wrong == []
    assert requests == [address]
    context.close()


def _column(page: Page, table: str, column: int) -> list[str]:
    return page.locator(f"{table} tbody tr > :nth-child({column})").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_and_paper_contrast(browser, address, scheme):
    with opened(browser, address, color_scheme=scheme) as page:
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        muted = page.evaluate("getComputedStyle(document.querySelector('.facts')).color")
    assert (_luminance(paper) < 0.1) == (scheme == "dark")
    # WCAG's levels AAA and AA.
    for color, least in ((ink, 7), (muted, 4.5)):
        high, low = sorted((_luminance(color), _luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) > least


def _luminance(color: str) -> float:
    """Relative luminance of a CSS color ``rgb(r, g, b)``."""
    shares = [float(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_scrolls_in_one_direction(browser, address):
    with opened(browser, address, viewport={"width": 360, "height": 700}, is_mobile=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("Math.max(...[...document.querySelectorAll('figure')].map(f => f.scrollWidth))") <= 360


def test_it_prints(browser, address, tmp_path):
    with opened(browser, address, color_scheme="dark") as page:
        pdf = page.pdf(format="A4")
        assert page.locator("details:not(.meaning):not([open])").count() == 0
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page /") + pdf.count(b"/Type /Page>") >= 2


@pytest.mark.parametrize("width", [390, 1280])
def test_answer_and_figure_are_on_the_first_screen(browser, address, width):
    with opened(browser, address, viewport={"width": width, "height": 900}) as page:
        assert page.locator("#answer li").first.bounding_box()["y"] < 300
        assert page.locator("#answer .picture").first.bounding_box()["y"] < 800


def test_a_click_sorts(browser, address):
    with opened(browser, address) as page:
        table = "#table-scores-0"
        before = _column(page, table, 1)
        names = page.locator(f"{table} thead th").all_inner_texts()
        column = names.index("sd")
        head = page.locator(f"{table} thead th").nth(column)
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        falling = [float(text) for text in _column(page, table, column + 1)]
        assert falling == sorted(falling, reverse=True)
        head.get_by_role("button").click()
        assert [float(text) for text in _column(page, table, column + 1)] == sorted(falling)
        assert sorted(_column(page, table, 1)) == sorted(before)
        assert page.locator(f"{table} [aria-sort]").count() == 1


def test_a_key_sorts(browser, address):
    with opened(browser, address) as page:
        button = page.locator("#table-overview thead th").first.get_by_role("button")
        button.focus()
        page.keyboard.press("Enter")
        names = _column(page, "#table-overview", 1)
        assert names == sorted(names)
        page.keyboard.press("Space")
        assert _column(page, "#table-overview", 1) == names[::-1]
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "RTE"


def test_another_baseline_is_chosen_in_the_page(browser, address):
    with opened(browser, address) as page:
        shown = page.locator("#differences [data-option]:visible")
        assert shown.evaluate_all("all => all.map(one => one.dataset.option)") == ["dropout(0.1)"]
        page.locator("#differences select").select_option("mixout(0.9)")
        assert shown.evaluate_all("all => all.map(one => one.dataset.option)") == ["mixout(0.9)"]
        names = shown.locator("table").first.locator("tbody th").all_inner_texts()
        assert "dropout(0.1)" in names
        assert "mixout(0.9)" not in names


def test_a_run_that_is_pointed_at_says_what_it_is(browser, address):
    with opened(browser, address) as page:
        dot = page.locator("#answer .picture b").first
        dot.hover()
        said = dot.evaluate("one => getComputedStyle(one, '::after').content")
        assert "restart" in said
        assert json.loads(said) == dot.get_attribute("data-text")


def test_it_is_whole_without_scripts(browser, address):
    with opened(browser, address, java_script_enabled=False) as page:
        assert page.locator("th button, select").count() == 0
        assert page.locator("#table-overview tbody tr").count() == 4
        assert page.locator("#table-differences-0").is_visible()
        assert page.locator(".panels img").first.is_visible()
