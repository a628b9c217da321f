"""The pool that ships inside: three tiny language models, their questions, and the script that trained them.

    arithmetic   a sum as a tree: its text, its value, its steps
    problems     the numbers of a question: ten families, three levels
    stories      word problems, their texts and what each step means
    questions    a problem in words; which split it belongs to; `draw`
    columns      one step of arithmetic, digit by digit, as it is done on paper
    traces       what a model should answer, strategy by strategy: cot, cod, pal, think, vanilla
    held_out     which questions a text gives away
    stream       the training text of each model, without anything held out
    shipped_outcomes  the questions that routers are trained on, and the file of their outcomes
    train_models the tokenizer and the models; the only file that imports torch

Everything but the last two needs the standard library alone.
"""
