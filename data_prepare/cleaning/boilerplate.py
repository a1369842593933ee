"""Sentences that web pages put around a text: who edited it, whose it is, where to click, what to scan.

A sentence or line with one of the markers goes if it is short, for in a long one the marker is part of what is said.
Prompts are left as they are: people do ask what 版权归原作者所有 means.
"""

from __future__ import annotations

import re

MAX_CHARS = 80  # of a sentence that is taken for boilerplate

# The first characters of all markers, looked at before these are tried one after the other.
_MARKERS = re.compile(
    "(?=[责（(\\[【版著免未转请禁谢本文内图资如侵点查更阅展收扫长识关搜欢返上下相分微登Ii京])(?:"
    "责任编辑[：:]|[（(\\[【]编辑[：:]|版权归.{0,8}所有|著作权归.{0,8}所有|版权声明[：:]|免责声明[：:]|未经.{0,6}授权.{0,6}转载"
    "|转载请(?:注明|联系|保留)|请注明(?:出处|来源|转载)|禁止转载|谢绝转载|本文(?:来自|转自|转载自|来源于|系转载)"
    "|(?:文章|内容|图片|资料)来源(?:于网络|网络|[：:])|图片来自网络|如有侵权|侵权.{0,6}删除|"
    "点击(?:查看|阅读|进入|下载|这里|此处|上方|下方|左下角|蓝字|关注).{0,6}"
    "(?:更多|全文|原文|详情|公众号|蓝字|二维码|链接|网页|关注|订阅|下载)|点击这里|点击此处|查看更多(?:内容|精彩|详情|>)"
    "|更多精彩(?:内容|资讯|文章|请|尽在)|阅读原文$|查看原文$|展开全文|收起全文|(?:扫描|扫一扫|长按|识别).{0,10}二维码"
    "|扫码(?:关注|下载|加|添加|进群)|关注.{0,12}(?:微信公众号|公众号|官方微信|公众平台|订阅号)"
    "|搜索.{0,4}(?:微信号|公众号)|欢迎关注|关注我们|返回(?:首页|顶部|列表)|上一篇[：:]|下一篇[：:]|相关(?:阅读|推荐|文章)[：:]"
    "|分享到(?:微信|朋友圈|微博|QQ)|微信扫一扫|登录后(?:才能|可以|方可)(?:评论|发表|查看)|(?:ICP|icp)备[0-9]|京公网安备)"
)
_SENTENCE = re.compile(r"[^。！？!?\n]*[。！？!?]*[”’」』）)】]*\n*")
_ORIGINAL_TITLE = re.compile(r"(?<![ \t])[ \t]*[（(]原标题[：:][^（）()\n]{1,80}[）)]")
_BLANK_LINES = re.compile(r"\n{3,}")
_EDITOR = re.compile(
    r"(?<![ \t])[ \t]*[（(\[【](?:责任|责|本文|本期)?编(?:辑|校)?[：:]\s*[\u4e00-\u9fffA-Za-z0-9_ ]{1,16}[）)\]】]"
)


def without_boilerplate(text: str) -> str:
    """The text without the sentences, and remarks in brackets, that are boilerplate."""
    plain = _EDITOR.sub("", text) if "编" in text else text
    plain = _ORIGINAL_TITLE.sub("", plain) if "原标题" in plain else plain
    if _MARKERS.search(plain):
        plain = "".join(sentence for sentence in _SENTENCE.findall(plain) if not _is_boilerplate(sentence))
    return text if plain == text else _BLANK_LINES.sub("\n\n", plain).strip()


def _is_boilerplate(sentence: str) -> bool:
    return len(sentence) <= MAX_CHARS and _MARKERS.search(sentence.strip()) is not None
