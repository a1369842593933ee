"""Keys in URLs, which belong into no file that is kept."""

from __future__ import annotations

import re

USER_IN_URL = re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^/@\s?#]+@")
KEY_IN_QUERY = re.compile(r"([?&#;][^=&?#;\s]*(?:key|token|secret|passw|auth|sig)[^=&?#;\s]*=)[^&#;\s]+", re.IGNORECASE)


def url_without_key(text: str) -> str:
    """URLs in a text without what they carry to log in with: user and password, and keys in their query."""
    return KEY_IN_QUERY.sub(r"\1<hidden>", USER_IN_URL.sub(r"\1<hidden>@", text))
