"""Parts of a data set that share no prompt, for judges that must not have seen what others were trained on."""

from __future__ import annotations

import hashlib
import re

from keju.errors import UserError
from keju.records.record import RankedRecord


class Fold:
    """`number` of `count` parts, from a text as 1/2. The part of a record depends on its prompt alone.

    Raises UserError for anything else.
    """

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f"expected a part as 1/2 or 2/2, got {text}", option="fold")
        self.number, self.count = int(found[1]), int(found[2])

    def holds(self, record: RankedRecord) -> bool:
        prompt = "\0".join(f"{message.role}\0{message.content}" for message in record.messages)
        digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.number - 1
