"""Draws the top of a report as docs/pictures/report.png, with Debian's Chromium and Playwright.

.venv/bin/python docs/pictures/report.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("report.png")
COMMAND = ["report", "pin-every-arena", "-a", "cpython-3.12", "-o"]
WIDTH, HEIGHT = 1100, 2400


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "replay", *COMMAND, page_file], check=True)
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(page_file.as_uri())
        page.wait_for_selector("#map-view[data-ready=yes]")
        page.wait_for_selector("[data-chart=timeline][data-ready=yes]")
        end = page.evaluate("document.getElementById('map-info').getBoundingClientRect().top + scrollY")
        page.screenshot(path=PICTURE, clip={"x": 0, "y": 0, "width": WIDTH, "height": end + 40})
        browser.close()


if __name__ == "__main__":
    main()
