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
    from PIL import Image
    from playwright.sync_api import sync_playwright

    report = subprocess.check_output(["hardcase", "report", "latest"], text=True).strip()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        audit = Path(folder, "audit.html")
        subprocess.run(["hardcase", "audit", "image-screener", "--html", str(audit)], check=True, capture_output=True)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        for name, path, height in (("report", Path(report), 2600), ("audit", audit, 1640)):
            page.goto(path.as_uri())
            file = FOLDER / f"{name}.png"
            page.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": 1280, "height": height})
            Image.open(file).quantize(256).save(file, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
