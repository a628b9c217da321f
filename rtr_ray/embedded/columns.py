"""One step of arithmetic, digit by digit, as it is done on paper.

A tiny model cannot add two long numbers at a glance, but it can add two digits. Each line here asks for
nothing that does not lie a few tokens back: two digits, a carry, and at the end the digits that were written
down.
"""

from __future__ import annotations

from rtr_ray.embedded.arithmetic import Step


def add_columns(left: int, right: int) -> str:
    """Add from the right, with carries.

    Example:
        >>> add_columns(345, 278)
        '5 + 8 = 13, 4 + 7 + 1 = 12, 3 + 2 + 1 = 6'
    """
    lines, carry = [], 0
    while left or right:
        a, b = left % 10, right % 10
        terms = [str(digit) for digit, there in ((a, left), (b, right)) if there] + (["1"] if carry else [])
        total = a + b + carry
        lines.append(f"{' + '.join(terms)} = {total}" if len(terms) > 1 else terms[0])
        left, right, carry = left // 10, right // 10, total // 10
    return ", ".join(lines)


def subtract_columns(left: int, right: int) -> str:
    """Subtract from the right; a digit that is too small borrows ten from the next one.

    Example:
        >>> subtract_columns(623, 190)
        '3 - 0 = 3, 12 - 9 = 3, 5 - 1 = 4'
    """
    lines, borrow = [], 0
    while left:
        a, b, more = left % 10 - borrow, right % 10, bool(right)
        borrow = int(a < b)
        a += 10 * borrow
        lines.append(f"{a} - {b} = {a - b}" if more else str(a))
        left, right = left // 10, right // 10
    return ", ".join(lines)


def times_digit_columns(number: int, digit: int) -> str:
    """Multiply by one digit from the right, with carries.

    Example:
        >>> times_digit_columns(347, 6)
        '7 * 6 = 42, 4 * 6 + 4 = 28, 3 * 6 + 2 = 20'
    """
    lines, carry = [], 0
    while number:
        total = number % 10 * digit + carry
        lines.append(f"{number % 10} * {digit}{f' + {carry}' if carry else ''} = {total}")
        number, carry = number // 10, total // 10
    return ", ".join(lines)


def long_division(number: int, divisor: int) -> tuple[str, int]:
    """Divide on paper: take away the largest multiple, bring down the next digit.

    Returns:
        The line, and the remainder.

    Example:
        >>> long_division(1763, 41)
        ('176 - 164 = 12, 123 - 123 = 0', 0)
        >>> long_division(1009, 7)
        ('10 - 7 = 3, 30 - 28 = 2, 29 - 28 = 1', 1)
    """
    lines, rest = [], 0
    for digit in str(number):
        rest = rest * 10 + int(digit)
        if rest >= divisor:
            taken = rest - rest % divisor
            lines.append(f"{rest} - {taken} = {rest - taken}")
            rest -= taken
    return ", ".join(lines), rest


def divide_columns(number: int, digit: int) -> str:
    """Divide by one digit from the left, with rests; the division must come out even.

    Example:
        >>> divide_columns(174, 3)
        '17 / 3 = 5 rest 2, 24 / 3 = 8 rest 0'
    """
    lines, rest, begun = [], 0, False
    for place in str(number):
        rest = rest * 10 + int(place)
        if begun or rest >= digit:
            begun = True
            lines.append(f"{rest} / {digit} = {rest // digit} rest {rest % digit}")
            rest %= digit
    return ", ".join(lines)


def worked(step: Step) -> str:
    """A step in full: in columns, or at a glance where one number has one digit.

    Example:
        >>> worked(Step(34, "+", 7, 41))
        '34 + 7 = 41'
        >>> worked(Step(345, "+", 278, 623))
        '345 + 278: 5 + 8 = 13, 4 + 7 + 1 = 12, 3 + 2 + 1 = 6, so 623'
        >>> worked(Step(41, "*", 20, 820))
        '41 * 20: 41 * 2: 1 * 2 = 2, 4 * 2 = 8, so 82, so 820'
    """
    left, sign, right, result = step
    long, short = max(left, right), min(left, right)
    asked = f"{left} {sign} {right}"
    if long < 10 or (short < 10 and sign in "+-"):
        return f"{asked} = {result}"
    if sign == "+":
        return f"{asked}: {add_columns(left, right)}, so {result}"
    if sign == "-":
        return f"{asked}: {subtract_columns(left, right)}, so {result}"
    if sign == "/":
        return f"{asked}: {divide_columns(left, right)}, so {result}"
    if short < 10:
        return f"{asked}: {times_digit_columns(long, short)}, so {result}"
    ones, tens = short % 10, short // 10
    second = f"{long} * 10 = {long * 10}" if tens == 1 else worked(Step(long, "*", tens, long * tens))
    if ones == 0:
        return f"{asked}: {second}, so {result}"
    first = worked(Step(long, "*", ones, long * ones))
    return f"{asked}: {first}, {second}, {worked(Step(long * ones, '+', long * tens * 10, result))}"
