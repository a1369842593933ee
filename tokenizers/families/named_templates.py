"""Chat templates by name: one Jinja file each in `templates/`, for models whose folders bring none along.

    chatml            Qwen chat models and many others      llama2, llama3     Llama 2 and 3 chat
    vicuna            Vicuna 1.1 and later                  ziya               Ziya-LLaMA
    chinese-alpaca    Chinese-Alpaca (the first)            chinese-alpaca-2   Chinese-Alpaca-2
    atom              AtomGPT, Atom-7B-Chat                 xverse             XVERSE-13B-Chat
    internlm          InternLM-Chat (the first)             deepseek           DeepSeek-LLM-Chat

Each ends an answer with the tokenizer's end token or with one of its own, which then has to be in the vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from keju.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


def template_names() -> list[str]:
    return sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


def chat_template(name: str) -> str:
    """The Jinja text of a named template, or of the file `name`. Raises UserError listing the names."""
    path = TEMPLATES / f"{name}.jinja" if name in template_names() else Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{name}: neither a file nor one of {', '.join(template_names())}", option="chat_template")
    return path.read_text(encoding="utf-8").strip()
