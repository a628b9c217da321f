"""A world of questions and models, of which everything is known: who answers what, and at what length.

A question is about one of some topics, which its words betray. Topics differ in how hard they are, in how
much the large model is ahead of the small one, and in how much it helps to think. Whether an answer is
right is drawn with the probability that follows; its length is lognormal with a heavy tail, and longer on
hard topics. Both come from a hash of what is asked and whom, so that the same call gives the same
answer, whoever computes it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from benchmarks.simulation.source import Answer, Answers
from rtr_ray.estimators.lognormal import capped_mean
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate

WORDS_PER_TOPIC, SHARED_WORDS = 6, 200
SPREAD = 0.9  # of the logarithm of a length: the longest of a thousand is 16 times the median
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Way:
    """What a strategy does to an answer."""

    help: float  # to the log-odds of being right
    median_tokens: float  # on a topic of middling difficulty
    max_tokens: int


WAYS: Mapping[str, Way] = {
    "vanilla": Way(0.0, 12, 256),
    "cod": Way(0.4, 70, 1024),
    "cot": Way(0.8, 220, 4096),
    "deep": Way(1.0, 600, 8192),
}
SKILL: Mapping[str, float] = {"small": 0.0, "large": 1.0}  # how much of the large model's lead each has


@dataclass(frozen=True, slots=True)
class Topic:
    """What a topic asks of a model."""

    difficulty: float  # log-odds
    lead: float  # of the large model, in log-odds
    thinking: float  # how many times a strategy's help


TOPICS: Sequence[Topic] = tuple(
    Topic(difficulty, lead, thinking)
    for difficulty, lead, thinking in (
        (-2.0, 0.3, 0.5),
        (-1.0, 0.5, 3.0),
        (-0.5, 3.5, 0.3),
        (0.0, 0.2, 4.0),
        (0.5, 3.5, 0.3),
        (1.0, 2.5, 3.0),
        (3.0, 0.5, 0.5),
        (2.0, 4.0, 1.0),
    )
)


@dataclass(frozen=True, slots=True)
class Truth:
    """The world of a seed; a `Source` of answers for the engine of one model."""

    model: str = ""
    seed: int = 0

    def topic(self, row: int) -> int:
        """What a row is about."""
        return self._dice(f"topic {row}")[0] % len(TOPICS)

    def text(self, row: int) -> str:
        """The question of a row."""
        dice = self._dice(f"text {row}")
        topic = self.topic(row)
        own = [f"t{topic}w{byte % WORDS_PER_TOPIC}" for byte in dice[:6]]
        shared = [f"word{(dice[i] * 256 + dice[i + 1]) % SHARED_WORDS}" for i in range(6, 12, 2)]
        return f"row {row}\n{' '.join(own)} {' '.join(shared)}"

    def open(self) -> Answers:
        """The answers of one model."""

        def answer(system: str, text: str) -> Answer:
            row = int(text.partition("\n")[0].removeprefix("row "))
            right, tokens = self.drawn(row, Candidate(self.model, system))
            return Answer("right" if right else "wrong", self.input_tokens(row), tokens)

        return answer

    def input_tokens(self, row: int) -> int:
        """Of the prompt of a row."""
        return 60 + self._dice(f"input {row}")[0]

    def probability(self, topic: int, candidate: Candidate) -> float:
        """Of being right."""
        asks = TOPICS[topic]
        help = asks.thinking * WAYS[candidate.strategy].help
        odds = SKILL[candidate.model] * asks.lead + help - asks.difficulty
        return 1 / (1 + math.exp(-odds))

    def median_tokens(self, topic: int, candidate: Candidate) -> float:
        """Of an answer's length."""
        return WAYS[candidate.strategy].median_tokens * math.exp(0.2 * TOPICS[topic].difficulty)

    def drawn(self, row: int, candidate: Candidate) -> tuple[bool, int]:
        """Whether the answer of a candidate to a row is right, and how long it is."""
        dice = self._dice(f"{row} {candidate}")
        luck, length = (int.from_bytes(dice[i : i + 7], "big") / 256**7 for i in (0, 8))
        topic = self.topic(row)
        median = self.median_tokens(topic, candidate)
        tokens = median * math.exp(SPREAD * _NORMAL.inv_cdf(min(max(length, 1e-9), 1 - 1e-9)))
        longest = WAYS[candidate.strategy].max_tokens
        return luck < self.probability(topic, candidate), min(max(math.ceil(tokens), 1), longest)

    def expected(self, pool: Pool, rows: Sequence[int]) -> dict[Candidate, tuple[float, float]]:
        """Mean dollars and share of right answers of each candidate, if it answered all of these rows."""
        share = np.bincount([self.topic(row) for row in rows], minlength=len(TOPICS)) / len(rows)
        prompt = float(np.mean([self.input_tokens(row) for row in rows]))
        found = {}
        for candidate in pool.candidates:
            price = pool.price(candidate)
            longest = np.array(float(WAYS[candidate.strategy].max_tokens))
            medians = np.array([self.median_tokens(t, candidate) for t in range(len(TOPICS))])
            # lengths are rounded up: by half a token on average
            lengths = np.minimum(capped_mean(np.log(medians), np.array(SPREAD), longest) + 0.5, longest)
            right = np.array([self.probability(t, candidate) for t in range(len(TOPICS))])
            cost = prompt * float(price.input_usd_per_mtok) + float(share @ lengths) * float(
                price.output_usd_per_mtok
            )
            found[candidate] = cost / 1e6, float(share @ right)
        return found

    def _dice(self, what: str) -> bytes:
        return hashlib.blake2b(f"{self.seed} {what}".encode(), digest_size=16).digest()


def best_mix(points: Sequence[tuple[float, float]], usd: float) -> float:
    """The most accuracy that a mix of fixed candidates has for so many dollars a row on average.

    Args:
        points: Dollars and accuracy of each.
        usd: What may be spent.
    """
    affordable = [accuracy for cost, accuracy in points if cost <= usd]
    mixed = [
        low + (high - low) * (usd - cheap) / (dear - cheap)
        for cheap, low in points
        for dear, high in points
        if cheap <= usd < dear
    ]
    return max(affordable + mixed, default=0.0)
