"""Takes the screenshots of docs/report.md with headless Chromium.

    python docs/screenshots.py report/index.html docs

Each shows some sections of a page of ``sad report``; the others are hidden in a copy of it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops


class Shot(NamedTuple):
    """A picture: file name, parts of the page, width and most height in pixels, colour scheme."""

    name: str
    parts: tuple[str, ...]
    width: int = 1280
    height: int = 2200
    dark: bool = False


SHOTS = (
    Shot("report_training.png", ("header", "#glance", "#training"), height=2500),
    Shot("report_agents.png", ("#agents",), height=2400),
    Shot("report_behaviour.png", ("#steps", "#behaviour", "#retention")),
    Shot("report_episodes.png", ("#episodes",), height=1600),
    Shot("report_dark.png", ("header", "#glance", "#agents"), height=1700, dark=True),
    Shot("report_phone.png", ("header", "#glance", "#behaviour"), width=390, height=2600),
)
#: Colours kept in the files, so that each stays small.
COLOURS = 160


def main() -> None:
    """Writes every picture of ``SHOTS``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="index.html of sad report")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--browser", default="chromium")
    args = parser.parse_args()
    if shutil.which(args.browser) is None:
        parser.error(f"no {args.browser!r} on PATH; name another with --browser")
    html = args.page.read_text(encoding="utf-8")
    for shot in SHOTS:
        with tempfile.TemporaryDirectory() as folder:
            copy, picture = Path(folder, "page.html"), Path(folder, "page.png")
            copy.write_text(only(html, shot.parts), encoding="utf-8")
            take(args.browser, copy, picture, shot)
            image = trimmed(Image.open(picture).convert("RGB"))
            image.quantize(COLOURS).save(args.out / shot.name, optimize=True)
        print(args.out / shot.name, image.size)


def only(html: str, parts: tuple[str, ...]) -> str:
    """The page with these parts alone; its content security policy would forbid the change."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    hidden = (
        f"<style>:is(header, section, footer):not({', '.join(parts)}) {{ display: none }}</style>"
    )
    return html.replace("</head>", f"{hidden}</head>", 1)


def take(browser: str, page: Path, picture: Path, shot: Shot) -> None:
    """Lets the browser draw the page into a PNG."""
    size = f"--window-size={shot.width},{shot.height}"
    scheme = f"--blink-settings=preferredColorScheme={0 if shot.dark else 1}"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [size, scheme, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def trimmed(image: Image.Image) -> Image.Image:
    """Without the empty lines at the bottom."""
    background = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    box = ImageChops.difference(image, background).getbbox()
    return image.crop((0, 0, image.width, min(image.height, box[3] + 24))) if box else image


if __name__ == "__main__":
    main()
