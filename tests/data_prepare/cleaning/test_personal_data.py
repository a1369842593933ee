"""Numbers and names of people are masked; dates, prices, versions and other numbers are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.cleaning.personal_data import (
    CARD,
    EMAIL,
    IDENTITY,
    IP,
    LANDLINE,
    MASKS,
    MOBILE,
    QQ,
    WECHAT,
    count_masks,
    fulfils_luhn,
    is_identity_number,
    masked,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("电话：13812345678。", f"电话：{MOBILE}。"),
        ("打+86 138-1234-5678或0086 13812345678", f"打{MOBILE}或{MOBILE}"),
        ("138 1234 5678、8613812345678", f"{MOBILE}、{MOBILE}"),
        ("热线010-57380537，0310-3202000，(021)65432100", f"热线{LANDLINE}，{LANDLINE}，{LANDLINE}"),
        ("客服热线：0757-8300 8300", f"客服热线：{LANDLINE}"),
        ("咨询电话01057380537", f"咨询电话{LANDLINE}"),
        ("邮箱wlwnews@163.com。", f"邮箱{EMAIL}。"),
        ("a.b-c+d@mail.ustc.edu.cn，", f"{EMAIL}，"),
        ("身份证11010519491231002X号", f"身份证{IDENTITY}号"),
        ("440524 18800101 0014", IDENTITY),
        ("旧证320311770706001", f"旧证{IDENTITY}"),
        ("卡号6222 0212 3456 7890 128", f"卡号{CARD}"),
        ("卡号4111111111111111。", f"卡号{CARD}。"),
        ("加微信：abc_12345，或微信号wangjuan9", f"加微信：{WECHAT}，或微信号{WECHAT}"),
        ("VX：zhang2020 微信号是：443407599", f"VX：{WECHAT} 微信号是：{WECHAT}"),
        ("QQ：123456789，QQ群432897707", f"QQ：{QQ}，QQ群{QQ}"),
        ("来自61.135.169.125的网友", f"来自{IP}的网友"),
    ],
)
def test_masked(text, expected):
    assert masked(text) == expected
    assert masked(expected) == expected
    assert sum(count_masks(text, expected).values()) == sum(expected.count(mask) for mask in MASKS) > 0


@pytest.mark.parametrize(
    "text",
    [
        "2016年7月18日，19491001，1949-10-01 12:30:00，2008-2012年",
        "价格13800000000元，13812345678美元，营收13812345678.55",
        "订单号138123456789012，编号A13812345678，138123456780",
        "圆周率3.14159265358979323846，0.13812345678",
        "第13812首，全唐诗卷12345678",
        "12812345678不是号段，1381234567少一位",
        "身份证110105194912310021的校验码不对",
        "110105194913310021没有十三月，99010519491231002X没有此省",
        "卡号6222021234567890123，1234567890123456",
        "@时尚罗湖 微博@陶大少，a@b，3@x.1",
        "微信用户已达6.97亿，微信搜索、微信支付；微信是什么；微信：好用",
        "QQ2012版，QQ空间10000人，QQ：好，QQ等级100000",
        "版本1.2.3.4，10.0.0.1，192.168.1.1，127.0.0.1，256.1.1.1，61.135.169.125.1",
        "库存0310个，0.571-87654321，010年",
        "ISBN 9787020002207，978-7-02-000220-7",
        "https://example.com/2016/13812345678.html",
        "比分138-1234",
    ],
)
def test_near_misses(text):
    assert masked(text) == text


def test_checksums():
    assert is_identity_number("11010519491231002x") and not is_identity_number("110105194912310020")
    assert fulfils_luhn("4111111111111111") and not fulfils_luhn("4111111111111112")


PIECES = st.lists(
    st.sampled_from([*"0123456789 -.@()", "138", "1234", "5678", "86", "+", "010", "微信", "QQ", "：", "号",
                     "电话", "x.com", *MASKS])
).map("".join)  # fmt: skip


@given(st.one_of(st.text(), PIECES))
def test_a_second_time_changes_nothing(text):
    once = masked(text)
    assert masked(once) == once


def test_news_keeps_its_numbers(shared):
    text = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8")
    counts = count_masks(text, masked(text))
    assert counts[MOBILE] >= 5 and counts[LANDLINE] >= 10 and counts[EMAIL] == 3
    assert counts[IDENTITY] == counts[CARD] == 0
