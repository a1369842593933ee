"""Tables: where rows begin, what is wrong with them, cells that hold JSON."""

from keju.data_prepare.corpus import Piece
from keju.data_prepare.formats.rows import rows_of


def table_rows(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(rows_of(path, Piece(name)))


def test_csv_rows_begin_at_their_lines_and_broken_ones_are_told(tmp_path):
    found = table_rows(tmp_path, 'prompt,label\n"甲\n乙",1\n\n"丙"丁,2\n戊,3\n己\n庚,"4\n')
    assert found[0] == (2, {"prompt": "甲\n乙", "label": "1"})
    assert found[2] == (6, {"prompt": "戊", "label": "3"})
    assert [number for number, _ in found] == [2, 5, 6, 7, 8]
    for place, message in (
        (1, "malformed CSV"),
        (3, "1 cells, but the first row names 2"),
        (4, "a quote is not closed"),
    ):
        assert message in str(found[place][1]) and isinstance(found[place][1], ValueError)


def test_a_quote_that_is_not_closed_costs_one_row(tmp_path):
    found = table_rows(tmp_path, 'prompt,label\n甲,"1\n乙,2\n丙,3\n')
    assert found[1:] == [(3, {"prompt": "乙", "label": "2"}), (4, {"prompt": "丙", "label": "3"})]
    assert found[0][0] == 2 and "a quote is not closed" in str(found[0][1])


def test_line_breaks_within_a_cell_stay(tmp_path):
    assert table_rows(tmp_path, 'text,more\r\n"甲\r\n乙",1\r\n') == [(2, {"text": "甲\r\n乙", "more": "1"})]


def test_a_csv_row_with_a_broken_line_is_left_out_whole(tmp_path):
    found = table_rows(tmp_path, "text\n好\n好\n好\n".encode() + b'"\xe7\x94\xb2\n\xff\nb"\nend\n')
    assert found[:3] == [(line, {"text": "好"}) for line in (2, 3, 4)] and found[4:] == [(8, {"text": "end"})]
    assert found[3][0] == 6 and "not UTF-8 text" in str(found[3][1])


def test_csv_cells_of_turns_and_labels(tmp_path):
    found = table_rows(
        tmp_path, 'prompt,completion,label,history\n问,答,True,"[[""a"", ""b""]]"\n问,答,0,\n问,答,?,[x\n'
    )
    assert found[0][1] == {"prompt": "问", "completion": "答", "label": "True", "history": [["a", "b"]]}
    assert found[1][1] == {"prompt": "问", "completion": "答", "label": "0"}
    assert '"history": malformed JSON' in str(found[2][1])


def test_tsv_keeps_quotes_and_without_header_ranks_texts(tmp_path):
    assert table_rows(tmp_path, 'text\tmore\n"甲\t1\n', "a.tsv") == [(2, {"text": '"甲', "more": "1"})]
    ((number, row),) = table_rows(tmp_path, "好\t坏\n", "b.tsv")
    assert number == 1 and row["output"] == ["好", "坏"]
