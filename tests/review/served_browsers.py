"""Browsers in which people use the pages: with a keyboard, or by touch."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager

from playwright.sync_api import sync_playwright

from tests.browser import chromium


@contextmanager
def browsers(*people: str):
    """Yield a page in its own browser for each person, and a list of the errors in the pages."""
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=sandbox)
        pages, wrong = [], []
        for person in people:
            page = browser.new_context(extra_http_headers={"X-User": person}).new_page()
            page.set_default_timeout(120_000)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            pages.append(page)
        yield pages, wrong
        browser.close()


@contextmanager
def phone(address: str):
    """Yield the page at an address in a browser that is used by touch, and a list of the errors in the page."""
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with (
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=chromium(), args=sandbox)) as browser,
    ):
        page = browser.new_context(
            viewport={"width": 390, "height": 844},
            has_touch=True,
            is_mobile=True,
            extra_http_headers={"X-User": "ada"},
        ).new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        yield page, wrong
