"""A router reads words; what only a machine would add to them it passes over."""

from __future__ import annotations

import numpy as np
import pytest

from rtr_ray.embedded.questions import draw
from rtr_ray.encoders.hashing import HashEncoder
from rtr_ray.familiarity import Caution
from rtr_ray.plainly import plainly
from tests.test_familiarity import POOL, folder, usual


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("What is 2 + 2?", "What is 2 + 2?"),
        ("What is 2 + 2? !!!!!!!!!!!!!!!!", "What is 2 + 2?"),
        ("What is 2 + 2? !!!! are \\\\n !!!!", "What is 2 + 2?"),
        ("Compute this: 2 + 3 * ( 4 - 1 )", "Compute this: 2 + 3 * ( 4 - 1 )"),
        ("Stop!!!!!!!!!!! said he", "Stop!!! said he"),
        ("What is 2 + 2? prove prove prove prove", "What is 2 + 2? prove"),
        ("What is 2 + 2? describing similarly revert oppositely prove", "What is 2 + 2?"),
        ("What is 2 + 2? Answer as a number please", "What is 2 + 2? Answer as a number please"),
        ("Ｗhat is\u200b 2 + 2?", "What is 2 + 2?"),
        ("no end in sight here", "no end in sight here"),
        ("Sort: 1, 2, 3.\nA first line\nand a second one", "Sort: 1, 2, 3.\nA first line\nand a second one"),
        ("\u200b", "\u200b"),
        ("", ""),
        ("ha ha ha ha", "ha"),
    ],
)
def test_a_text_is_read_without_odd_signs_repeats_and_tails(text: str, read: str):
    assert plainly(text) == read
    assert plainly(read) == read


def test_ordinary_questions_stay_as_they_are():
    texts = [question.query for question in draw("test", 300, 1)] + usual(50)
    assert [text for text in texts if plainly(text) != text] == []


def test_a_router_that_reads_plainly_chooses_as_without_the_tail():
    encoder = HashEncoder(64)
    text = "what is the sum of 3 and 4?"
    odd = f"{text} describing similarly revert oppositely prove"
    bound = folder().bind(POOL, encoder, caution=Caution(None, plainly=True))

    def accuracy(router_text: str) -> list[float]:
        rows_QD = bound.encoder.encode([router_text])
        table = bound.table(["a"], rows_QD, np.array([len(router_text)]), [router_text])
        assert table.unfamiliar is None
        return table.accuracy[0].tolist()

    assert accuracy(odd) == accuracy(text)
    plain = folder().bind(POOL, encoder)
    assert plain.encoder.encode([odd]).tolist() != plain.encoder.encode([text]).tolist()
    assert bound.encoder.identity == f"plain:{encoder.identity}"
