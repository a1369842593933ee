"""What tells who a person is or how to reach them, replaced by a mask that says what stood there.

Only what is hardly anything else is masked: an identity number has a province, a date and (18 digits) a right checksum;
a bank card fulfils Luhn's rule; a QQ or WeChat name is announced as one; a landline without a hyphen is announced as a
telephone. Digits beside other digits, letters or a decimal point, and digits before a unit (元 万 次), are numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import date

MOBILE, LANDLINE, EMAIL, IDENTITY, CARD, WECHAT, QQ, IP = MASKS = (
    "<手机号>", "<固定电话>", "<邮箱>", "<身份证号>", "<银行卡号>", "<微信号>", "<QQ号>", "<IP地址>",
)  # fmt: skip

_NOT_BEFORE = r"(?<![0-9A-Za-z_])(?<![0-9A-Za-z][.\-/=])"
_NOT_AFTER = r"(?![0-9A-Za-z_])(?![.\-/][0-9])(?!\s?(?:元|美元|块|万|亿|％|%|次|人民币|公里|千米|平方|吨))"

# What the slower patterns below need: few texts have any of these.
_LONG_NUMBER = re.compile(r"[0-9](?:[ \-()（）]{0,2}[0-9]){6}")
_NAME = re.compile("微信|[Ww](?:e[Cc]hat|[Xx])|[Vv][Xx]|[Qq]{2}|WX|扣扣")
_FOUR_PARTS = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9_][A-Za-z0-9._%+\-]{0,63}@(?:[A-Za-z0-9\-]{1,63}\.){1,5}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IDENTITY = re.compile(
    _NOT_BEFORE
    + r"[1-8][0-9]{5}[ \-]?(?:(?:18|19|20)[0-9]{6}[ \-]?[0-9]{3}[0-9Xx]|[0-9]{6}[ \-]?[0-9]{3})"
    + _NOT_AFTER
)
_CARD = re.compile(_NOT_BEFORE + r"[3-69][0-9]{3}(?:[ \-]?[0-9]{4}){3}(?:[ \-]?[0-9]{1,3})?" + _NOT_AFTER)
_MOBILE = re.compile(
    r"(?:(?<![0-9A-Za-z_+])(?:\+|00)86[ \-]?|" + _NOT_BEFORE + r"(?:86[ \-]?)?)"
    r"1[3-9][0-9](?:[ \-]?[0-9]{4}[ \-]?[0-9]{4}|[0-9][ \-][0-9]{3}[ \-][0-9]{4})" + _NOT_AFTER
)
_AREA = r"0(?:10|2[0-9]|[3-9][0-9]{2})"
_NUMBER = r"[2-9](?:[0-9]{6,7}|[0-9]{2,3}[ \-][0-9]{4})(?:[ \-]?转[0-9]{1,5})?"
_LANDLINE = re.compile(
    rf"(?:{_NOT_BEFORE}(?:(?:\+|00)?86[ \-]?)?(?:{_AREA}[ \-]{{1,2}}|[(（]{_AREA}[)）][ \-]?)"
    rf"|(?<=电话)[：: ]{{0,2}}{_AREA}|(?<=热线)[：: ]{{0,2}}{_AREA}|(?<=传真)[：: ]{{0,2}}{_AREA}){_NUMBER}{_NOT_AFTER}"
)
_WECHAT = re.compile(
    r"((?:微信(?:公众|订阅)?号?(?:ID|id)?|(?<![A-Za-z])(?:[Ww]e[Cc]hat|WX|wx|VX|vx)(?:号|ID|id)?)"
    r"(?:\s?(?:号码|是|为|[：:])\s?){1,2}|(?:微信号|加微信|微信)\s?(?=[A-Za-z][A-Za-z]*[0-9_\-]))"
    r"(?:[A-Za-z][A-Za-z0-9_\-]{5,19}|[1-9][0-9]{5,11})(?![A-Za-z0-9_\-])"
)
_QQ = re.compile(
    r"((?<![A-Za-z])(?:QQ|qq|Qq|扣扣)(?:群|号|号码|群号|交流群)?(?:\s?(?:是|为|[：:])\s?){1,2}"
    r"|(?<![A-Za-z])(?:QQ|qq|扣扣)(?:群|号|群号|号码)\s?)[1-9][0-9]{4,10}(?![0-9A-Za-z年月])"
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IP = re.compile(rf"(?<![0-9A-Za-z.])(?<!版本)(?<!版本[ ：:]){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9A-Za-z]|\.[0-9])")
_IP_OF_NOBODY = re.compile(  # of a private network, or rather the number of a version or a chapter
    r"(?:0|10|127|255|192\.168|172\.(?:1[6-9]|2[0-9]|3[01])|169\.254)\.|[0-9]\.[0-9]\.[0-9]\.[0-9]$"
)

_PROVINCE = re.compile("1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|81|82")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def masked(text: str) -> str:
    """The text with a mask of `MASKS` for each number or name of a person."""
    if "@" in text:
        text = _EMAIL.sub(EMAIL, text)
    if _NAME.search(text):
        text = _WECHAT.sub(rf"\1{WECHAT}", text)
        text = _QQ.sub(rf"\1{QQ}", text)
    if _LONG_NUMBER.search(text):
        text = _IDENTITY.sub(lambda found: IDENTITY if is_identity_number(_digits(found[0])) else found[0], text)
        text = _CARD.sub(lambda found: CARD if fulfils_luhn(_digits(found[0])) else found[0], text)
        text = _MOBILE.sub(MOBILE, text)
        text = _LANDLINE.sub(LANDLINE, text)
    if _FOUR_PARTS.search(text):
        text = _IP.sub(lambda found: found[0] if _IP_OF_NOBODY.match(found[0]) else IP, text)
    return text


def count_masks(before: str, after: str) -> Counter[str]:
    """How many of each mask `masked` set."""
    return Counter({mask: after.count(mask) - before.count(mask) for mask in MASKS if mask in after})


def is_identity_number(digits: str) -> bool:
    """Of the mainland: 15 digits (until 1999, the year in two), or 18 with a checksum by ISO 7064 (mod 11-2)."""
    if not _PROVINCE.match(digits):
        return False
    born = digits[6:14] if len(digits) == 18 else f"19{digits[6:12]}"
    try:
        date(int(born[:4]), int(born[4:6]), int(born[6:]))
    except ValueError:
        return False
    if len(digits) == 15:
        return True
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits, strict=False))
    return "10X98765432"[total % 11] == digits[17].upper()


def fulfils_luhn(digits: str) -> bool:
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[-1::-2]))) % 10 == 0


def _digits(found: str) -> str:
    return found.replace(" ", "").replace("-", "")
