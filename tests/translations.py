"""Which Chinese pages are older than the English ones that they translate.

python tests/translations.py             puts a notice on pages whose English one has changed, and takes it off others
python tests/translations.py docs/zh/x.md ...   says that these are up to date: after they have been translated
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
NOTICE = "> 本页比英文版旧，以英文版为准。\n\n"
MARK = re.compile(r"\n<!-- English: ([0-9a-f]{16}) -->\n$")


def pages() -> list[Path]:
    """The Chinese ones."""
    return [REPO / "README.zh-CN.md", *sorted((REPO / "docs/zh").glob("*.md"))]


def english_of(page: Path) -> Path:
    """The page that a Chinese one translates."""
    return REPO / "README.md" if page.name == "README.zh-CN.md" else REPO / "docs" / page.name


def is_older(page: Path) -> bool:
    """Whether the English page is another one than that which was translated."""
    mark = MARK.search(page.read_text(encoding="utf-8"))
    return mark is None or mark[1] != _digest(english_of(page))


def main(translated: list[str]) -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if str(page) in {str(Path(name).resolve()) for name in translated}:
            text = MARK.sub("\n", text).rstrip("\n") + f"\n\n<!-- English: {_digest(english_of(page))} -->\n"
            page.write_text(text, encoding="utf-8")
        title, _, rest = text.replace(NOTICE, "").partition("\n\n")
        notice = NOTICE if is_older(page) else ""
        page.write_text(f"{title}\n\n{notice}{rest}", encoding="utf-8")
        if notice:
            print(f"{page.relative_to(REPO)} is older than {english_of(page).relative_to(REPO)}")


def _digest(page: Path) -> str:
    return hashlib.sha256(page.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    main(sys.argv[1:])
