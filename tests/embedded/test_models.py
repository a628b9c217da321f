"""The shipped folders: small enough, complete, loadable, and the models in them do answer."""

import json
import re
from pathlib import Path

import pytest

from rtr_ray.embedded.questions import draw
from rtr_ray.embedded.stream import ASSISTANT, END, MIXES, NO_THINKING, chunk, prompt_of
from rtr_ray.embedded.traces import SYSTEM_PROMPTS

EMBEDDED = Path(__file__).parents[2] / "rtr_ray" / "embedded"
MODELS = EMBEDDED / "models"
SHAPES = {"nano": (128, 2, 384, 2), "small": (192, 4, 512, 3), "dual": (192, 4, 512, 3)}


def messages_of(query, strategy):
    system = SYSTEM_PROMPTS[strategy]
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": query}]


@pytest.fixture(scope="module", params=SHAPES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(name):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODELS / name)


@pytest.fixture(scope="module")
def model(name):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, dtype="float32").eval()


def test_the_pool_is_small_enough_to_ship():
    sizes = {path: path.stat().st_size for path in EMBEDDED.rglob("*") if "__pycache__" not in path.parts}
    assert sum(sizes.values()) < 10_000_000
    assert max(sizes.values()) < 6_000_000


def test_a_folder_has_what_a_server_looks_for(name):
    files = {path.name for path in (MODELS / name).iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_server_stops_at_the_end_token(name, tokenizer):
    end_id = tokenizer.convert_tokens_to_ids(END)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((MODELS / name / file).read_text())["eos_token_id"] == end_id
    assert tokenizer.eos_token == END


def test_the_three_models_share_one_tokenizer(name):
    mine, nanos = (MODELS / folder / "tokenizer.json" for folder in (name, "nano"))
    assert mine.read_bytes() == nanos.read_bytes()


def test_every_training_text_survives_the_tokenizer(name, tokenizer):
    for sample in chunk(name, 0, 0, size=1000):
        ids = tokenizer.encode(sample.text, add_special_tokens=False)
        assert tokenizer.decode(ids) == sample.text
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def test_a_digit_is_a_token_of_its_own(tokenizer):
    assert tokenizer.tokenize("34 + 7 = 41") == ["3", "4", "Ġ+Ġ", "7", "Ġ=Ġ", "4", "1"]


def test_a_text_that_no_model_was_trained_on_survives_too(tokenizer):
    text = "Wieviel ist 3 × 4? 二 🙂"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("strategy", SYSTEM_PROMPTS)
def test_the_chat_template_writes_the_prompts_of_the_training(name, tokenizer, strategy):
    query = "What is 34 + 7 - 5?"
    shown = tokenizer.apply_chat_template(
        messages_of(query, strategy), tokenize=False, add_generation_prompt=True
    )
    assert shown == prompt_of(query, strategy, thinks=True if MIXES[name].dual else None)


def test_thinking_can_be_switched_off(name, tokenizer):
    def shown(**options):
        return tokenizer.apply_chat_template(
            messages_of("1?", "vanilla"), tokenize=False, add_generation_prompt=True, **options
        )

    assert shown() == shown(enable_thinking=True) == f"<|user|>1?{ASSISTANT}"
    off = NO_THINKING if MIXES[name].dual else ""
    assert shown(enable_thinking=False) == f"<|user|>1?{ASSISTANT}{off}"


def test_a_conversation_goes_on_after_an_answer(tokenizer):
    conversation = [*messages_of("1?", "vanilla"), {"role": "assistant", "content": "1"}]
    conversation += messages_of("2?", "vanilla")
    shown = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert shown == f"<|user|>1?<|assistant|>1{END}<|user|>2?<|assistant|>"


def test_thoughts_stay_in_the_text_when_special_tokens_are_left_out(tokenizer):
    ids = tokenizer.encode(f"<think>3 + 4 = 7</think>7{END}", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>3 + 4 = 7</think>7"


def test_the_weights_have_the_shapes_that_the_documentation_gives(name, model):
    hidden, layers, feed_forward, heads = SHAPES[name]
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (
        hidden,
        layers,
        feed_forward,
    )
    assert (config.num_attention_heads, config.head_dim) == (heads, 64)
    assert config.tie_word_embeddings
    assert model.get_input_embeddings().weight.shape == (640, hidden)
    assert 0.4e6 < sum(p.numel() for p in model.parameters()) < 2.0e6


def test_a_model_answers_easy_questions(name, model, tokenizer):
    torch = pytest.importorskip("torch")
    questions = draw("route", 20, seed=0, families=("largest",))
    right = 0
    for question in questions:
        prompt = prompt_of(question.query, "vanilla", thinks=False if MIXES[name].dual else None)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            written = model.generate(**ids, max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(written[0][ids["input_ids"].shape[1] :], skip_special_tokens=True)
        right += re.fullmatch(r"\d+", text) is not None and text == question.gold
    assert right >= 12
