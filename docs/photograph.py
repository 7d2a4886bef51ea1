"""Take docs/pictures/report.png and audit.png of the latest run in $HARDCASE_HOME, in a browser 1280 pixels wide.

Take them of a run of profile tiny (`make run`): the screenshots of smoke show a model that has not learned. Chromium is
found in the `PATH`, or installed by `playwright install chromium`.

    python docs/photograph.py
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"


def main() -> None:
    """Take both screenshots."""
    from playwright.sync_api import sync_playwright

    report = subprocess.check_output(["hardcase", "report", "latest"], text=True).strip()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        audit = Path(folder, "audit.html")
        subprocess.run(["hardcase", "audit", "image-screener", "--html", str(audit)], check=True, capture_output=True)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        for name, path, full in (("report", Path(report), True), ("audit", audit, False)):
            page.goto(path.as_uri())
            page.screenshot(path=FOLDER / f"{name}.png", full_page=full)
        browser.close()


if __name__ == "__main__":
    main()
