"""A sum as a tree: its text, its value, and the steps that lead there."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Tree: TypeAlias = "int | tuple[Tree, str, Tree]"

_BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}


class Step(NamedTuple):
    """One operation on two numbers, worked out."""

    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


def apply(left: int, sign: str, right: int) -> int:
    """Work out `left sign right` in whole numbers.

    Raises:
        ValueError: If a division leaves a remainder, or the sign is none of + - * /.
    """
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    if sign == "/" and right and left % right == 0:
        return left // right
    raise ValueError(f"Cannot work out {left} {sign} {right} in whole numbers.")


def steps_of(tree: Tree) -> tuple[Step, ...]:
    """The operations of a tree in the order of a person: left before right, inside before outside.

    Example:
        >>> [str(step) for step in steps_of(((34, "+", 7), "*", 5))]
        ['34 + 7 = 41', '41 * 5 = 205']
    """
    done: list[Step] = []

    def walk(node: Tree) -> int:
        if isinstance(node, int):
            return node
        left, sign, right = walk(node[0]), node[1], walk(node[2])
        done.append(Step(left, sign, right, apply(left, sign, right)))
        return done[-1].result

    walk(tree)
    return tuple(done)


def text_of(tree: Tree) -> str:
    """Write a tree with the parentheses that it needs and no others.

    Example:
        >>> text_of(((34, "+", 7), "*", (5, "-", (3, "-", 1))))
        '(34 + 7) * (5 - (3 - 1))'
    """
    if isinstance(tree, int):
        return str(tree)
    left, sign, right = tree
    binds = _BINDS[sign]
    left_text, right_text = text_of(left), text_of(right)
    if not isinstance(left, int) and _BINDS[left[1]] < binds:
        left_text = f"({left_text})"
    if not isinstance(right, int) and (
        _BINDS[right[1]] < binds or (_BINDS[right[1]] == binds and sign in "-/")
    ):
        right_text = f"({right_text})"
    return f"{left_text} {sign} {right_text}"


def leaves_of(tree: Tree) -> tuple[int, ...]:
    """The numbers of a tree, from left to right."""
    if isinstance(tree, int):
        return (tree,)
    return leaves_of(tree[0]) + leaves_of(tree[2])


def chain_of(first: int, rest: tuple[tuple[str, int], ...]) -> Tree:
    """A tree that adds and subtracts from left to right."""
    tree: Tree = first
    for sign, number in rest:
        tree = (tree, sign, number)
    return tree
