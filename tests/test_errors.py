from __future__ import annotations

import pytest

from keju.errors import UserError, renamed_options


def refused(option: str | None = "model_name_or_path"):
    raise UserError("x holds no model", option=option)


def test_the_option_is_said_first_and_a_flag_to_one_who_gave_flags():
    error = UserError("x holds no model", option="output_dir")
    assert (str(error), error.in_flags()) == ("output_dir: x holds no model", "--output_dir: x holds no model")
    assert UserError("a.jsonl:3: no text").in_flags() == "a.jsonl:3: no text"


@pytest.mark.parametrize(
    ("raised", "known_as"),
    [("model_name_or_path", "reward_model_path"), ("max_length", "max_length"), (None, None)],
)
def test_an_option_goes_by_the_name_that_a_stage_has_for_it(raised, known_as):
    with pytest.raises(UserError) as caught, renamed_options(model_name_or_path="reward_model_path"):
        refused(raised)
    assert caught.value.option == known_as


def test_the_innermost_name_counts_and_a_whole_function_can_have_one():
    @renamed_options(reward_model_path="reward", model_name_or_path="policy")
    def stage(inner):
        with renamed_options(**inner):
            refused()

    for inner, known_as in (({"model_name_or_path": "reward_model_path"}, "reward"), ({}, "policy"), ({}, "policy")):
        with pytest.raises(UserError) as caught:
            stage(inner)
        assert caught.value.option == known_as


def test_other_errors_pass():
    with pytest.raises(KeyError), renamed_options(a="b"):
        raise KeyError("a")
