"""Hooks of mkdocs: the READMEs are the first pages, and links to files outside of docs/ are no links in the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

REPO = Path(__file__).resolve().parents[1]
FRONT = {"index.md": "README.md", "zh/index.md": "README.zh-CN.md"}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config) -> Files:
    for uri, name in FRONT.items():
        text = (REPO / name).read_text(encoding="utf-8")
        folder = "docs/zh/" if uri.startswith("zh/") else "docs/"
        text = re.sub(r'src="docs/', 'src="../' if uri.startswith("zh/") else 'src="', text)
        # As if the README lay in the folder of its page
        text = LINK.sub(lambda link, folder=folder: f"[{link[1]}]({_from(folder, link[2])})", text)
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    folder = (REPO / "docs" / page.file.src_uri).parent

    def kept(link: re.Match[str]) -> str:
        target = link[2].partition("#")[0]
        if not target or "://" in target:
            return link[0]
        path = (folder / target).resolve()
        return link[0] if path.is_relative_to(REPO / "docs") else link[1]

    return LINK.sub(kept, markdown)


def _from(folder: str, target: str) -> str:
    if target in FRONT.values():
        page = next(uri for uri, name in FRONT.items() if name == target)
        return f"../{page}" if folder == "docs/zh/" else page
    up = "../" * folder.count("/")
    return up + target if "://" not in target and not target.startswith("docs/") else _inside(folder, target)


def _inside(folder: str, target: str) -> str:
    if target.startswith(folder):
        return target.removeprefix(folder)
    return "../" + target.removeprefix("docs/") if target.startswith("docs/") else target
