"""The training stream: the same seed gives the same texts; every model is taught what it should be."""

from collections import Counter

from rtr_ray.embedded.problems import FAMILIES
from rtr_ray.embedded.stream import END, MIXES, SEED, chunk, drill_share, prompt_of


def test_the_same_seed_gives_the_same_texts():
    assert chunk("nano", 1, 0, size=200) == chunk("nano", 1, 0, size=200)
    assert chunk("nano", 1, 0, size=200) != chunk("nano", 1, 1, size=200)
    assert chunk("nano", 1, 0, size=200) != chunk("nano", 2, 0, size=200)


def test_a_model_learns_to_write_the_completion_and_only_to_read_the_prompt():
    for sample in chunk("small", 0, 0, size=300):
        for start, end in sample.learned:
            if sample.question is None:
                assert sample.text[start:end].endswith("\n")
            else:
                assert sample.text[:start] == prompt_of(sample.question.query, sample.kind)
                assert sample.text[start:end].endswith(END)


def test_every_strategy_but_programs_is_taught_on_every_family():
    for model, mix in MIXES.items():
        wanted = {"think", "vanilla"} if model == "dual" else {"vanilla", "cot", "cod", "pal"}
        assert set(mix.strategies) == wanted
        for strategy, weights in mix.strategies.items():
            assert set(weights) == set(FAMILIES)
            assert strategy == "pal" or min(weights.values()) > 0


def test_programs_are_taught_for_sums_and_digits_and_a_little_for_stories():
    kinds = Counter((s.kind, s.question.family) for s in chunk("small", SEED, 0) if s.question is not None)
    assert {family for kind, family in kinds if kind == "pal"} == {
        "chain",
        "product",
        "expression",
        "digits",
        "word",
    }
    assert kinds["pal", "word"] < kinds["pal", "expression"] / 2


def test_drills_come_first():
    assert drill_share(0) == 0.45
    assert drill_share(20) == drill_share(500) == 0.2


def test_a_model_with_two_modes_answers_at_once_when_thinking_is_switched_off():
    for sample in chunk("dual", 0, 0, size=300):
        if sample.kind == "think":
            assert "<|assistant|><think>" in sample.text
            assert "<|assistant|><think></think>" not in sample.text
        elif sample.kind == "vanilla":
            assert "<|assistant|><think></think>" in sample.text
