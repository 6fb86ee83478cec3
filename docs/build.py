"""Write the reference pages and check that every relative link in the Markdown files leads somewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from maskmend.reference import config_page, methods_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"docs/reference/config.md": config_page, "docs/reference/methods.md": methods_page}


def stale() -> list[str]:
    """Reference pages that differ from what the code says."""
    return [name for name, make in PAGES.items() if not _same(ROOT / name, make())]


def broken_links() -> Iterator[str]:
    """Relative links to files that do not exist, as "page: link"."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in link and not (page.parent / link).exists():
                yield f"{page.relative_to(ROOT)}: {link}"


def main() -> int:
    """Write the pages (or only look, with --check); 1 when a page is stale or a link is broken."""
    if "--check" not in sys.argv:
        for name, make in PAGES.items():
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_text(make(), encoding="utf-8")
    faults = [f"{name} is stale: run make docs" for name in stale()] + [
        f"broken link: {x}" for x in broken_links()
    ]
    print("\n".join(faults or ["docs are in order"]), file=sys.stderr)
    return 1 if faults else 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
