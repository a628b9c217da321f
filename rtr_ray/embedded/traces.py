"""What a model should answer: one completion for each strategy, for each family of questions.

    vanilla  the answer and nothing else
    cot      chain of thought: each step in words and numbers, long sums in columns, the answer in a box
    cod      chain of draft: the least that one would note on paper, the answer in a box
    pal      a Python program that prints the answer
    think    the longest working, between <think> and </think>, then the answer

Every line asks for little more than what stands a few tokens before it: that is what a tiny model can learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rtr_ray.embedded.arithmetic import Step
from rtr_ray.embedded.columns import long_division, worked
from rtr_ray.embedded.problems import euclid, smallest_prime_factor
from rtr_ray.embedded.questions import Question

SYSTEM_PROMPTS = {
    "vanilla": "",
    "cot": "Reason step by step, then give the answer in \\boxed{}.",
    "cod": "Draft each step in five words or fewer, then give the answer in \\boxed{}.",
    "pal": "Write a Python program that prints the answer.",
}
"""What the system message of each strategy says; an empty one is left out."""

STRATEGIES = (*SYSTEM_PROMPTS, "think")
"""`think` is no strategy of its own but the `vanilla` of a model that thinks first."""

Trace = Callable[[Question], str]


def completion(question: Question, strategy: str) -> str:
    """The completion to learn for a question: correct, and in the strategy's style.

    Args:
        strategy: One of `STRATEGIES`.
    """
    if strategy == "vanilla":
        return question.gold
    if strategy == "think":
        return f"<think>{_THINK[question.family](question)}</think>{question.gold}"
    if strategy == "pal":
        return f"```python\n{_PAL[question.family](question)}\n```"
    if strategy == "cod":
        return f"{_COD[question.family](question)}; \\boxed{{{question.gold}}}"
    if strategy == "cot":
        return f"{_COT[question.family](question)}. The answer is \\boxed{{{question.gold}}}."
    raise ValueError(f"Unknown strategy {strategy!r}. Known strategies: {', '.join(STRATEGIES)}.")


def _divisors_to_try(number: int) -> Iterator[int]:
    """Primes in order, up to the smallest factor or to the square root."""
    divisor = 2
    while divisor * divisor <= number:
        yield divisor
        if number % divisor == 0:
            return
        divisor += 1
        while smallest_prime_factor(divisor) != divisor:
            divisor += 1


def _smallest(question: Question) -> list[int]:
    """The numbers of a `rank` question from the smallest up to the one that is asked for."""
    return sorted(question.numbers)[: int(question.form)]


def _running_sums(number: int) -> list[int]:
    digits = [int(digit) for digit in str(number)]
    return [sum(digits[: i + 1]) for i in range(len(digits))]


# --- cot ---------------------------------------------------------------------------------------------


def _cot_steps(question: Question) -> str:
    return ". Then ".join(worked(step) for step in question.steps)


def _cot_word(question: Question) -> str:
    lines = [f"{note}: {worked(step)}" for note, step in zip(question.notes, question.steps, strict=True)]
    return ". ".join(line[0].upper() + line[1:] for line in lines)


def _cot_largest(question: Question) -> str:
    best = question.numbers[0]
    lines = [f"Start with {best}"]
    for number in question.numbers[1:]:
        lines.append(f"{number}: {'take' if number > best else 'keep'} {max(best, number)}")
        best = max(best, number)
    return ". ".join(lines)


def _cot_rank(question: Question) -> str:
    first, *others = _smallest(question)
    return ". ".join([f"The smallest is {first}", *(f"Then {number}" for number in others)])


def _cot_digits(question: Question) -> str:
    digits, sums = str(question.numbers[0]), _running_sums(question.numbers[0])
    return ", ".join(
        f"{before} + {digit} = {total}"
        for before, digit, total in zip(sums, digits[1:], sums[1:], strict=False)
    )


def _sequence(question: Question, show: Callable[[Step], str]) -> str:
    before, previous, last = question.numbers[-3:]
    gold = int(question.gold)
    if question.form == "factor":
        factor = last // previous
        return f"{previous} * {factor} = {last}. So times {factor}: {show(Step(last, '*', factor, gold))}"
    if last < previous:
        found = [show(Step(a, "-", b, a - b)) for a, b in ((previous, last), (before, previous))]
        return (
            f"{'. '.join(found)}. So take away {previous - last}: {show(Step(last, '-', last - gold, gold))}"
        )
    found = [show(Step(b, "-", a, b - a)) for a, b in ((previous, last), (before, previous))]
    step, growth = last - previous, last + before - 2 * previous
    if growth:
        found.append(f"It grows by {growth}. {show(Step(step, '+', growth, step + growth))}")
    return f"{'. '.join(found)}. So add {step + growth}: {show(Step(last, '+', step + growth, gold))}"


def _cot_sequence(question: Question) -> str:
    return _sequence(question, worked)


def _cot_factor(question: Question) -> str:
    (number,) = question.numbers
    lines = [f"{divisor}: remainder {number % divisor}" for divisor in _divisors_to_try(number)]
    return ". ".join(lines if question.gold != str(number) else [*lines, "It is prime"])


def _cot_gcd(question: Question) -> str:
    left, right = question.numbers
    return ". ".join(f"{a} mod {b} = {a % b}" for a, b in euclid(left, right))


# --- cod ---------------------------------------------------------------------------------------------


def _cod_chain(question: Question) -> str:
    return "; ".join(str(step.result) for step in question.steps)


def _cod_product(question: Question) -> str:
    (step,) = question.steps
    long, short = max(step.left, step.right), min(step.left, step.right)
    if short < 10:
        return "; ".join(str(long // place * place * short) for place in (100, 10, 1))
    ones, tens = long * (short % 10), long * (short - short % 10)
    return f"{ones}; {tens}; {step.result}"


def _cod_steps(question: Question) -> str:
    return "; ".join(f"{left}{sign}{right}={result}" for left, sign, right, result in question.steps)


def _cod_largest(question: Question) -> str:
    numbers = question.numbers
    return "; ".join(str(max(numbers[: i + 1])) for i in range(1, len(numbers)))


def _cod_rank(question: Question) -> str:
    return "; ".join(map(str, _smallest(question)))


def _cod_digits(question: Question) -> str:
    return "; ".join(map(str, _running_sums(question.numbers[0])[1:]))


def _cod_sequence(question: Question) -> str:
    before, previous, last = question.numbers[-3:]
    if question.form == "factor":
        return f"times {last // previous}"
    if question.form == "equal":
        return f"step {last - previous}"
    return f"{previous - before}; {last - previous}; step {int(question.gold) - last}"


def _cod_factor(question: Question) -> str:
    (number,) = question.numbers
    lines = [f"{divisor} {'no' if number % divisor else 'yes'}" for divisor in _divisors_to_try(number)]
    return "; ".join(lines if question.gold != str(number) else [*lines, "prime"])


def _cod_gcd(question: Question) -> str:
    return "; ".join(f"{a} {b}" for a, b in euclid(question.numbers[0], question.numbers[1]))


# --- pal ---------------------------------------------------------------------------------------------


def _pal_sum(question: Question) -> str:
    return f"print({question.form.replace('/', '//')})"


def _pal_largest(question: Question) -> str:
    return f"print(max({', '.join(map(str, question.numbers))}))"


def _pal_rank(question: Question) -> str:
    return f"print(sorted([{', '.join(map(str, question.numbers))}])[{int(question.form) - 1}])"


def _pal_digits(question: Question) -> str:
    return f'print(sum(map(int, "{question.numbers[0]}")))'


def _pal_sequence(question: Question) -> str:
    a, b, c = question.numbers[-3:]
    if question.form == "factor":
        return f"print({c} * {c} // {b})"
    if question.form == "equal":
        return f"print({c} + {c} - {b})"
    return f"a, b, c = {a}, {b}, {c}\nprint(3 * c - 3 * b + a)"


def _pal_factor(question: Question) -> str:
    return f"n = {question.numbers[0]}\nd = 2\nwhile n % d:\n    d += 1\nprint(d)"


def _pal_gcd(question: Question) -> str:
    return f"import math\nprint(math.gcd({question.numbers[0]}, {question.numbers[1]}))"


# --- think -------------------------------------------------------------------------------------------


def _think_steps(question: Question) -> str:
    return ", ".join(map(str, question.steps))


def _think_product(question: Question) -> str:
    (step,) = question.steps
    long, short = max(step.left, step.right), min(step.left, step.right)
    if short < 10:
        hundreds, tens, ones = (long // place % 10 * place * short for place in (100, 10, 1))
        steps = [Step(hundreds, "+", tens, hundreds + tens), Step(hundreds + tens, "+", ones, step.result)]
    else:
        ones, tens = short % 10, short - short % 10
        steps = [Step(long, "*", ones, long * ones), Step(long, "*", tens, long * tens)]
        steps.append(Step(long * ones, "+", long * tens, step.result))
    return ", ".join(map(str, steps))


def _think_sequence(question: Question) -> str:
    return _sequence(question, str)


def _think_factor(question: Question) -> str:
    (number,) = question.numbers
    lines = []
    for divisor in _divisors_to_try(number):
        verdict = "no" if number % divisor else "yes"
        if divisor in (2, 5):
            lines.append(f"{divisor}: ends in {number % 10}, {verdict}")
        elif divisor == 3:
            total = _running_sums(number)[-1]
            lines.append(f"3: digits {total}, {verdict}")
        else:
            lines.append(f"{divisor}: {long_division(number, divisor)[0]}, {verdict}")
    return ". ".join(lines if question.gold != str(number) else [*lines, "prime"])


def _think_gcd(question: Question) -> str:
    lines = []
    for left, right in euclid(question.numbers[0], question.numbers[1]):
        taken = []
        while left >= right:
            taken.append(f"{left} - {right} = {left - right}")
            left -= right
        lines.append(", ".join(taken))
    return ". ".join(lines)


def _think_rank(question: Question) -> str:
    rounds, floor = [], -1
    for _ in range(int(question.form)):
        best, scan = -1, []
        for number in question.numbers:
            if number > floor and (best < 0 or number < best):
                best = number
            scan.append(f"{number} {best if best >= 0 else 'no'}")
        rounds.append(", ".join(scan))
        floor = best
    return ". ".join(rounds)


_COT: dict[str, Trace] = {
    "chain": _cot_steps,
    "product": _cot_steps,
    "expression": _cot_steps,
    "word": _cot_word,
    "largest": _cot_largest,
    "rank": _cot_rank,
    "digits": _cot_digits,
    "sequence": _cot_sequence,
    "factor": _cot_factor,
    "gcd": _cot_gcd,
}
_COD: dict[str, Trace] = {
    "chain": _cod_chain,
    "product": _cod_product,
    "expression": _cod_steps,
    "word": _cod_steps,
    "largest": _cod_largest,
    "rank": _cod_rank,
    "digits": _cod_digits,
    "sequence": _cod_sequence,
    "factor": _cod_factor,
    "gcd": _cod_gcd,
}
_PAL: dict[str, Trace] = {
    "chain": _pal_sum,
    "product": _pal_sum,
    "expression": _pal_sum,
    "word": _pal_sum,
    "largest": _pal_largest,
    "rank": _pal_rank,
    "digits": _pal_digits,
    "sequence": _pal_sequence,
    "factor": _pal_factor,
    "gcd": _pal_gcd,
}
_THINK: dict[str, Trace] = {
    "chain": _think_steps,
    "product": _think_product,
    "expression": _think_steps,
    "word": _think_steps,
    "largest": _cot_largest,
    "rank": _think_rank,
    "digits": _cot_digits,
    "sequence": _think_sequence,
    "factor": _think_factor,
    "gcd": _think_gcd,
}
