"""Train the embedded pool from nothing: one tokenizer, three Llamas, in the format that vLLM loads.

    python -m rtr_ray.embedded.train_models

trains all of it on one CPU core and writes it to rtr_ray/embedded/models. A training that was stopped goes on
where it was with `--resume`. This is the only file of the pool that needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # fmt: skip
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rtr_ray.embedded.stream import ASSISTANT, END, MIXES, NO_THINKING, SEED, SYSTEM, USER, Sample, chunk

MODELS_FOLDER = Path(__file__).parent / "models"
VOCABULARY = 640
PAD = "<|pad|>"

_PIECES = r"\\boxed\{|```python\n|\n```|\d| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+ ?|\s+"
"""How text falls apart before byte pairs are merged: a digit is always a token of its own."""


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a model and how long it is trained."""

    hidden: int
    layers: int
    feed_forward: int
    steps: int
    batch_tokens: int = 2048
    learning_rate: float = 4e-3


SIZES = {
    "nano": Size(hidden=128, layers=2, feed_forward=384, steps=3600),
    "small": Size(hidden=192, layers=4, feed_forward=512, steps=3600),
    "dual": Size(hidden=192, layers=4, feed_forward=512, steps=3600),
}


def chat_template(dual: bool) -> str:
    """The Jinja template of a model's prompts; `stream.prompt_of` writes the same by hand."""
    template = (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ '" + END + "' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}"
    )
    if dual:
        switched_off = "enable_thinking is defined and not enable_thinking"
        template += "{% if " + switched_off + " %}{{ '" + NO_THINKING + "' }}{% endif %}"
    return template + "{% endif %}"


def train_tokenizer(texts_per_model: int = 2 * 4096) -> Tokenizer:
    """Learn byte pairs from the beginning of every model's stream."""
    control = [PAD, END, SYSTEM, USER, ASSISTANT]
    # Not `special`, so that a server keeps them in the text it returns, as it must for a model that thinks.
    thinking = [AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(thinking),
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for model in MIXES:
            for index in range(texts_per_model // 4096):
                for sample in chunk(model, SEED, index):
                    text = sample.text
                    for token in (*control, "<think>", "</think>"):
                        text = text.replace(token, "\x00")
                    yield from text.split("\x00")

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens(thinking)
    return tokenizer


def encode(tokenizer: Tokenizer, samples: list[Sample]) -> list[tuple[list[int], list[bool]]]:
    """Tokens of samples, and for each token whether it is to be learned."""
    encoded = []
    for sample, encoding in zip(samples, tokenizer.encode_batch([s.text for s in samples]), strict=True):
        marks = [any(a <= start < b for a, b in sample.learned) for start, _ in encoding.offsets]
        encoded.append((encoding.ids, marks))
    return encoded


def batches(
    tokenizer: Tokenizer, model: str, tokens: int, start: tuple[int, int] = (0, 0)
) -> Iterator[tuple[tuple[int, int], torch.Tensor, torch.Tensor]]:
    """Batches of texts of like length, chunk after chunk.

    Args:
        tokens: How many tokens a batch may have, padding included.
        start: The place to begin at: the chunk, and the batch in it.

    Returns:
        (the place of the batch that follows, tokens, labels); a label of -100 is not learned.
    """
    index, skipped = start
    while True:
        samples = sorted(encode(tokenizer, chunk(model, SEED, index)), key=lambda sample: len(sample[0]))
        rows: list[list[tuple[list[int], list[bool]]]] = [[]]
        for sample in samples:
            if (len(rows[-1]) + 1) * len(sample[0]) > tokens:
                rows.append([])
            rows[-1].append(sample)
        random.Random(f"batches {SEED} {index}").shuffle(rows)
        for done, row in enumerate(rows[skipped:], start=skipped + 1):
            width = max(len(ids) for ids, _ in row)
            ids_BT = torch.zeros((len(row), width), dtype=torch.long)
            labels_BT = torch.full((len(row), width), -100)
            for i, (ids, marks) in enumerate(row):
                ids_BT[i, : len(ids)] = torch.tensor(ids)
                labels_BT[i, : len(ids)] = torch.where(torch.tensor(marks), torch.tensor(ids), -100)
            yield (index, done), ids_BT, labels_BT
        index, skipped = index + 1, 0


def build(size: Size, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A new Llama; heads of 64, the smallest that vLLM serves on a CPU."""
    heads = size.hidden // 64
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        intermediate_size=size.feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def loss_of(model: LlamaForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the tokens that are to be learned."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden_BTD = model.model(input_ids=ids_BT[:, :-1]).last_hidden_state
        learned_BT = labels_BT[:, 1:] >= 0
        logits_NV = model.lm_head(hidden_BTD[learned_BT])
    return cross_entropy(logits_NV.float(), labels_BT[:, 1:][learned_BT])


def share_of_rate(step: int, steps: int) -> float:
    """The learning rate as a share of the highest: up, level, and down to nothing in the last half."""
    if step < 100:
        return (step + 1) / 100
    down = max(0.0, (step - 0.5 * steps) / (0.5 * steps))
    return 0.5 * (1 + math.cos(math.pi * down))


def train(name: str, tokenizer: Tokenizer, size: Size, work: Path, resume: bool) -> LlamaForCausalLM:
    """Train one model, saying how it goes, saving every few minutes.

    Args:
        work: Where the checkpoint goes; with `resume` training goes on from it.
    """
    torch.manual_seed(SEED)
    model = build(size, tokenizer)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is q for q in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=size.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=size.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    path = work / f"{name}.pt"
    step, place, spent_s = 0, (0, 0), 0.0
    if resume and path.exists():
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, place, spent_s = saved["step"], saved["place"], saved["spent_s"]
        print(f"{name}: goes on at step {step}", flush=True)

    before_s = time.monotonic() - spent_s
    seen, losses, since_s, saved_s = 0, 0.0, time.monotonic(), time.monotonic()
    for following, ids_BT, labels_BT in batches(tokenizer, name, size.batch_tokens, place):
        if step >= size.steps:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = size.learning_rate * share_of_rate(step, size.steps)
        loss = loss_of(model, ids_BT, labels_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += ids_BT.numel()
        losses += loss.item()
        now_s = time.monotonic()
        if step % 100 == 0:
            left_min = (now_s - before_s) / step * (size.steps - step) / 60
            rate = seen / (now_s - since_s)
            print(
                f"{name}: step {step}/{size.steps}  loss {losses / 100:.4f}  {rate:.0f} tokens/s  "
                f"{left_min:.0f} min left",
                flush=True,
            )
            seen, losses, since_s = 0, 0.0, now_s
        if now_s - saved_s > 240 or step == size.steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "place": following,
                "spent_s": now_s - before_s,
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            saved_s = now_s
    print(f"{name}: done after {(time.monotonic() - before_s) / 60:.0f} min", flush=True)
    return model


def save(name: str, model: LlamaForCausalLM, tokenizer: Tokenizer, output: Path) -> None:
    """Write a model's folder, whole or not at all: configuration, bfloat16 weights, tokenizer, template."""
    folder, new = output / name, output / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=tokenizer.token_to_id(END), pad_token_id=tokenizer.token_to_id(PAD), do_sample=False
    )
    model.bfloat16().save_pretrained(new)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = chat_template(MIXES[name].dual)
    fast.save_pretrained(new, save_jinja_files=False)
    # The name that every release of transformers knows; newer ones write a name that older ones do not.
    config = json.loads((new / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (new / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in new.iterdir():
        path.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the embedded pool from nothing.")
    parser.add_argument("--model", choices=(*SIZES, "all"), default="all")
    parser.add_argument("--output", type=Path, default=MODELS_FOLDER, help="folder of the model folders")
    parser.add_argument("--work", type=Path, default=Path("build/embedded"), help="folder of the checkpoints")
    parser.add_argument(
        "--steps", type=int, help="train for so many steps; by default what the pool was given"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --work")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)

    tokenizer_path = options.work / "tokenizer.json"
    if options.resume and tokenizer_path.exists():
        tokenizer = Tokenizer.from_file(str(tokenizer_path))
    else:
        tokenizer = train_tokenizer()
        tokenizer.save(str(tokenizer_path))
    for name in SIZES if options.model == "all" else (options.model,):
        wanted: dict[str, Any] = {} if options.steps is None else {"steps": options.steps}
        size = Size(**{**{field: getattr(SIZES[name], field) for field in Size.__slots__}, **wanted})
        model = train(name, tokenizer, size, options.work, options.resume)
        save(name, model, tokenizer, options.output)
        print(
            json.dumps({"model": name, "parameters": sum(p.numel() for p in model.parameters())}), flush=True
        )


if __name__ == "__main__":
    main()
