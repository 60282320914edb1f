"""Numbers as the API writes them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from nas_api.base import Decimal
from nas_controller.status import decimal

DECIMAL: TypeAdapter[str] = TypeAdapter(Decimal)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_a_decimal_of_the_api(value: float) -> None:
    text = DECIMAL.validate_python(decimal(value))
    if 1e-6 < abs(value) < 1e11:
        assert math.isclose(float(text), value, rel_tol=1e-5)
    assert re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (0.9333333, "0.933333"), (-62.4, "-62.4"), (1e-9, "0.000000001"), (1e300, "9" * 12)],
)
def test_decimals_are_short(value: float, text: str) -> None:
    assert decimal(value) == text
