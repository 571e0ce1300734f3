"""Text for people."""

from utils.text import in_one_line, markdown_table


def test_a_name_is_one_line_of_valid_text():
    assert in_one_line("a\nb\x1b[0m\udce9\u2028c") == "a?b?[0m??c"
    assert in_one_line("caf\u00e9\u00a0\U0001f469\u200d\U0001f33e") == "caf\u00e9\u00a0\U0001f469\u200d\U0001f33e"


def test_a_table_by_hand():
    assert markdown_table([["N", "best"], ["-:", "-:"], ["1", "91.0"]]) == "| N | best |\n| -: | -: |\n| 1 | 91.0 |"
