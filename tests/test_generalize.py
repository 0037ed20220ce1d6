"""Texts that differ in numbers: one text with parameters, which means what each of them says and nothing else."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from torchlet.compiler import generalize
from torchlet.compiler.generalize import Text, match, of, render, unify


def general(*texts: str) -> Text:
    out = of(texts[0])
    for text in texts[1:]:
        more = unify(out, of(text))
        assert more is not None
        out = more
    return out


def test_a_number_that_differs_becomes_a_parameter_and_the_others_stay() -> None:
    text = general("for (i = 0; i < 17; i++) x[i * 64] = 2;", "for (i = 0; i < 33; i++) x[i * 64] = 2;")
    assert render(text, 0) == "for (i = 0; i < size0; i++) x[i * 64] = 2;"
    assert match(text, of("for (i = 0; i < 5; i++) x[i * 64] = 2;")) == (5,)


def test_places_that_held_the_same_pair_of_numbers_share_a_parameter() -> None:
    text = general("a[17] + b[34] + c[17]", "a[33] + b[66] + c[33]")
    assert render(text, 0) == "a[size0] + b[size1] + c[size0]"
    assert match(text, of("a[5] + b[10] + c[5]")) == (5, 10)
    assert match(text, of("a[5] + b[10] + c[6]")) is None


def test_a_third_text_splits_a_parameter_that_two_examples_could_not_tell_apart() -> None:
    text = general("a[8] + b[8]", "a[9] + b[9]")
    assert text.reals == (False,)
    assert match(text, of("a[3] + b[4]")) is None
    more = general("a[8] + b[8]", "a[9] + b[9]", "a[3] + b[4]")
    assert match(more, of("a[3] + b[4]")) == (3, 4) and match(more, of("a[9] + b[9]")) == (9, 9)


def test_texts_with_other_words_have_nothing_in_common() -> None:
    assert unify(of("a[3] + b"), of("a[3] - b")) is None
    assert match(of("a[3] + b"), of("a[3] - b")) is None
    assert match(of("a[3] + b"), of("a[4] + b")) is None


def test_numbers_inside_names_are_not_numbers() -> None:
    assert unify(of("b0[1]"), of("b1[1]")) is None
    assert unify(of("tl_round_bf16(x)"), of("tl_round_bf32(x)")) is None


@pytest.mark.parametrize(("a", "b", "spelled"), [
    ("x / 17u", "x / 33u", "x / ((uint32_t)size0)"), ("17L * tid", "33L * tid", "size0 * tid"),
    ("x * 0.5f", "x * 1e-05f", "x * ((float)size0)"),
    ("x * 0.5", "x * 1e-05", "x * size0"), ("(-17)", "(-33)", "(-size0)"),
])
def test_a_literal_keeps_its_type(a: str, b: str, spelled: str) -> None:
    assert render(general(a, b), 0) == spelled


@pytest.mark.parametrize(("a", "b"), [("17", "17u"), ("17", "0.5f"), ("0.5f", "0.5"), ("17u", "5000000000u")])
def test_numbers_of_different_types_do_not_meet(a: str, b: str) -> None:
    assert unify(of(a), of(b)) is None


def test_a_float_parameter_has_the_value_that_the_c_compiler_would_read() -> None:
    import numpy as np

    text = general("x * 0.1f", "x * 0.3f")
    assert match(text, of("x * 0.7f")) == (float(np.float32("0.7")),)
    assert match(general("0.1f + 0.1f", "0.2f + 0.2f"), of("0.7f + 0.7f")) is not None


def test_parameters_are_declared_where_the_text_says_so() -> None:
    text = general(f"f() {{ {generalize.SIZES} x(3, 0.5f); }}", f"f() {{ {generalize.SIZES} x(4, 0.25f); }}")
    assert "const int64_t size0 = s[2]; const double size1 = tl_double(s[3]);" in render(text, 2)
    assert generalize.SIZES not in render(of(f"f() {{ {generalize.SIZES} }}"), 0)


def test_an_array_gets_the_room_of_the_largest_size_instead_of_a_parameter() -> None:
    text = general("x[TL_ROOM(17, 512)]; n = 17", "x[TL_ROOM(33, 512)]; n = 33")
    assert render(text, 0) == "x[TL_ROOM(512, 512)]; n = size0"
    assert match(text, of("x[TL_ROOM(5000, 512)]; n = 5000")) == (5000,)
    assert match(text, of("x[TL_ROOM(17, 64)]; n = 17")) is None


_WORDS = ["x[", "] + ", " * b1_0[i", "f(", ", "]
_NUMBERS = st.sampled_from(["0", "1", "17", "33", "17u", "4L", "0.5f", "1e-05f", "2.5"])


def _instance(text: Text, values: tuple[int | float, ...]) -> list[tuple[str, object]]:
    """The numbers of a text with its parameters replaced: (kind, value)."""
    return [(n.kind, values[n.parameter]) if isinstance(n, generalize.Hole) else generalize._read(str(n)) for n in text.numbers]


@given(st.lists(st.tuples(st.sampled_from(_WORDS), _NUMBERS), max_size=12), st.data())
def test_a_generalisation_means_each_of_its_examples(parts: list[tuple[str, str]], data: st.DataObject) -> None:
    examples = [of("".join(w + n + " " for w, n in parts))]
    for _ in range(3):
        numbers = data.draw(st.lists(_NUMBERS, min_size=len(parts), max_size=len(parts)))
        examples.append(of("".join(w + n + " " for (w, _), n in zip(parts, numbers, strict=True))))
    out: Text | None = examples[0]
    done = [examples[0]]
    for e in examples[1:]:
        more = unify(out, e) if out is not None else None
        if more is not None:
            out = more
            done.append(e)
    assert out is not None
    for e in done:
        values = match(out, e)
        assert values is not None
        assert _instance(out, values) == _instance(e, ())
