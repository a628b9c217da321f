"""pool.yaml and job.yaml: what they may say, and the one sentence that a mistake in them gets."""

from __future__ import annotations

from decimal import Decimal
from importlib import resources
from pathlib import Path

import pytest

from rtr_ray.config import SHIPPED_POOLS, load_collection, load_job, load_pool, pool_path
from rtr_ray.errors import ConfigError
from rtr_ray.pool import Pool
from rtr_ray.types import Candidate, Sampling, Usage

PRICES = "{input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.4, source: a page, date: 2026-11-01}"
POOL = f"""\
deployments:
  small-engine:
    source: hub/small
    prices: {PRICES}
models:
  Small:
    deployment: small-engine
    profile: small and quick
strategies: [vanilla, cot]
"""
JOB = """\
pool: pool.yaml
router: router/
corpus: {path: corpus.jsonl}
output: run/
"""
JARGON = (
    "pydantic",
    "validation",
    "traceback",
    "valueerror",
    "typeerror",
    "nonetype",
    "dict",
    "instance",
    "errno",
)


def pool_of(folder: Path, text: str) -> Pool:
    path = folder / "pool.yaml"
    path.write_text(text)
    return load_pool(str(path))


def changed(old: str, new: str, text: str = POOL) -> str:
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    return text.replace(old, new)


def said_of(folder: Path, text: str) -> str:
    """What is said of a pool.yaml, without the name of the file that it begins with."""
    with pytest.raises(ConfigError) as caught:
        pool_of(folder, text)
    message, where = str(caught.value), str(folder / "pool.yaml")
    assert message.startswith(where)
    assert "\n" not in message
    rest = message.removeprefix(where)
    assert not [word for word in JARGON if word in rest.lower()]
    return rest.removeprefix(": ")


def test_a_pool_has_every_pair_of_model_and_strategy_in_the_order_of_the_file(tmp_path):
    pool = pool_of(tmp_path, POOL)
    assert pool.candidates == (Candidate("Small", "vanilla"), Candidate("Small", "cot"))


def test_a_price_keeps_every_decimal_and_where_it_was_read(tmp_path):
    price = pool_of(tmp_path, POOL).deployments["small-engine"].price
    assert (price.input_usd_per_mtok, price.output_usd_per_mtok) == (Decimal("0.1"), Decimal("0.4"))
    assert (price.source, price.date) == ("a page", "2026-11-01")
    assert price.cached_input_usd_per_mtok is None


def test_two_models_share_one_deployment_in_two_modes(tmp_path):
    text = changed(
        "    profile: small and quick\n",
        "    profile: small and quick\n"
        "    chat_template_kwargs: {enable_thinking: false}\n"
        "  Thinker:\n"
        "    deployment: small-engine\n"
        "    profile: the same, thinking\n"
        "    chat_template_kwargs: {enable_thinking: true}\n"
        "    thinking_tokens: 1000\n"
        "    sampling: {temperature: 0.6, top_p: 0.95}\n",
    )
    pool = pool_of(tmp_path, text)
    small, thinker = Candidate("Small", "cot"), Candidate("Thinker", "cot")
    assert pool.deployment(small) is pool.deployment(thinker)
    assert pool.models["Thinker"].chat_template_kwargs == {"enable_thinking": True}
    assert pool.max_tokens(thinker) == pool.max_tokens(small) + 1000
    assert pool.sampling(small) == Sampling(temperature=0.0)
    assert pool.sampling(thinker) == Sampling(temperature=0.6, top_p=0.95)
    assert pool.thinking == {"Thinker"}


def test_a_model_may_cost_something_else_than_its_deployment(tmp_path):
    text = changed(
        "    profile: small and quick\n",
        "    profile: small and quick\n    prices: {input_usd_per_mtok: 2, output_usd_per_mtok: 8}\n",
    )
    pool = pool_of(tmp_path, text)
    assert pool.cost_usd(Candidate("Small", "cot"), Usage(1_000_000, 500_000)) == Decimal(6)


def test_zero_is_a_price(tmp_path):
    text = changed(
        "input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.4", "input_usd_per_mtok: 0, output_usd_per_mtok: 0"
    )
    assert pool_of(tmp_path, text).cost_usd(Candidate("Small", "cot"), Usage(1000, 1000)) == 0


def test_six_decimals_are_a_price_and_seven_are_not(tmp_path):
    assert pool_of(tmp_path, changed("0.1", "0.000001")).deployments[
        "small-engine"
    ].price.input_usd_per_mtok == Decimal("0.000001")
    assert said_of(tmp_path, changed("0.1", "0.0000001")) == (
        "deployments.small-engine.prices.input_usd_per_mtok is 1e-07: it has more than 6 decimals. "
        "Expected: dollars per million tokens, 0 for free, at most 6 decimals."
    )


PRICE = "deployments.small-engine.prices.input_usd_per_mtok"
A_PRICE = "Expected: dollars per million tokens, 0 for free, at most 6 decimals."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("input_usd_per_mtok: 0.1, ", "", f"{PRICE} is missing. {A_PRICE}"),
        ("0.1", "-1", f"{PRICE} is -1: 0 is the least. {A_PRICE}"),
        ("0.1", ".nan", f"{PRICE} is NaN: a finite number is needed. {A_PRICE}"),
        ("0.1", ".inf", f"{PRICE} is Infinity: a finite number is needed. {A_PRICE}"),
        ("0.1", "1e9999", f"{PRICE} is '1e9999': 1000000 is the most. {A_PRICE}"),
        ("0.1", "cheap", f"{PRICE} is 'cheap': a number is needed. {A_PRICE}"),
        ("0.1", "", f"{PRICE} is empty: a value is needed. {A_PRICE}"),
        (
            f"    prices: {PRICES}\n",
            "",
            "deployments.small-engine.prices is missing. "
            "Expected: input_usd_per_mtok and output_usd_per_mtok; 0 for free.",
        ),
        (
            "deployment: small-engine",
            "deploymnet: small-engine",
            "models.Small.deploymnet: unknown key. Known keys here: chat_template_kwargs, deployment, "
            "prices, profile, sampling, thinking_tokens. Did you mean 'deployment'? "
            "(1 more problem behind it.)",
        ),
        (
            "strategies:",
            "strategy:",
            "strategy: unknown key. Known keys here: deployments, exclude, models, strategies. "
            "Did you mean 'strategies'? (1 more problem behind it.)",
        ),
        (
            "    deployment: small-engine\n",
            "    deployment: big-engine\n",
            "Model 'Small' names the deployment 'big-engine'. Known deployments: small-engine.",
        ),
        (
            "    profile: small and quick\n",
            "",
            "models.Small.profile is missing. "
            "Expected: a sentence or two that the router reads about the model.",
        ),
        (
            "small and quick",
            "' '",
            "Model 'Small' has no profile. Say in a sentence or two how large it is, what it is good at and "
            "how long its answers get: the router reads it.",
        ),
        (
            "    source: hub/small\n",
            "",
            "Deployment 'small-engine' needs either a source (a folder or hub id) or openai (an endpoint).",
        ),
        (
            "    source: hub/small\n",
            "    source: hub/small\n    openai: {base_url: 'https://here/v1'}\n",
            "Deployment 'small-engine' needs either a source (a folder or hub id) or openai (an endpoint).",
        ),
        (
            "    source: hub/small\n",
            "    openai: {base_url: 'here/v1'}\n",
            "deployments.small-engine.openai.base_url is 'here/v1': it does not look like one. "
            "Expected: the URL up to /v1.",
        ),
        (
            "source: hub/small",
            "source: ./nowhere",
            "deployments.small-engine.source is './nowhere': there is no such folder beside the file. "
            "Expected: a folder (relative to this file) or a hub id.",
        ),
        (
            "    source: hub/small\n",
            "    source: hub/small\n    autoscaling: {min_replicas: 3, max_replicas: 2}\n",
            "Deployment 'small-engine' has min_replicas=3 and max_replicas=2; "
            "1 <= min_replicas <= max_replicas is needed.",
        ),
        (
            "    source: hub/small\n",
            "    source: hub/small\n    engine: {tensor_parallel_size: two}\n",
            "deployments.small-engine.engine.tensor_parallel_size is 'two': a whole number is needed. "
            "Expected: over how many GPUs the model is spread.",
        ),
        (
            "[vanilla, cot]",
            "[vanilla, cott]",
            "strategies.cott.builtin is 'cott'. Expected: one of vanilla, cot, cod, pal.",
        ),
        (
            "[vanilla, cot]",
            "[vanilla, cot, vanilla]",
            "strategies names 'vanilla' twice. Expected: each once.",
        ),
        ("[vanilla, cot]", "[]", "The pool has no strategies; one at least is needed."),
        (
            "[vanilla, cot]",
            "{mine: {max_tokens: 9}}",
            "strategies.mine.profile is missing. Expected: a sentence or two that the router reads about it.",
        ),
        (
            "[vanilla, cot]",
            "{mine: {profile: short}}",
            "strategies.mine.max_tokens is missing. Expected: the longest answer in tokens.",
        ),
        (
            "[vanilla, cot]",
            "{cot: {builtin: cot, profile: ''}}",
            "Strategy 'cot' has no profile. Say in a sentence or two what it is good at and how long its "
            "answers get: the router reads it.",
        ),
        (
            "[vanilla, cot]",
            "{cot: {builtin: cot, answer: boxes}}",
            "Strategy 'cot' has answer: boxes. Known: auto, boxed, choice, last_number, program, text.",
        ),
        (
            "[vanilla, cot]",
            "{cot: {builtin: cot, samples: 5, select: best}}",
            "Strategy 'cot' has select: best. Known: first, majority.",
        ),
        (
            "[vanilla, cot]",
            "{cot: {builtin: cot, samples: 5}}",
            "Strategy 'cot' draws 5 samples but keeps the first. Set select: majority.",
        ),
        (
            "[vanilla, cot]",
            "{cot: {builtin: cot, template: 'no place'}}",
            "The template of strategy 'cot' holds {query} 0 times; exactly once is needed.",
        ),
        (
            "  Small:",
            "  Small one:",
            "model 'Small one' is not a usable name. Use letters, digits, '.', '_', '-' and '/', beginning "
            "with a letter or digit.",
        ),
    ],
)
def test_a_mistake_in_a_pool_is_told_with_its_key_and_what_was_expected(tmp_path, old, new, message):
    assert said_of(tmp_path, changed(old, new)) == message


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ("[{model: Tall, strategy: cot}]", "exclude names the model 'Tall'. Known: Small."),
        ("[{model: Small, strategy: pal}]", "exclude names the strategy 'pal'. Known: cot, vanilla."),
        (
            "[{model: Small, strategy: [cot, vanilla]}]",
            "The pool has no candidate left: every model and strategy pair is excluded.",
        ),
        (
            "{Small: cot}",
            'exclude is {"Small": "cot"}: a list is needed. Expected: a list of {model, strategy}.',
        ),
    ],
)
def test_a_mistake_in_what_is_excluded_is_told(tmp_path, exclude, message):
    assert said_of(tmp_path, POOL + f"exclude: {exclude}\n") == message


def test_an_excluded_pair_is_no_candidate(tmp_path):
    pool = pool_of(tmp_path, POOL + "exclude: [{model: Small, strategy: [cot]}]\n")
    assert pool.candidates == (Candidate("Small", "vanilla"),)


def test_a_key_given_twice_is_told_with_its_line(tmp_path):
    text = changed("    source: hub/small\n", "    source: hub/small\n    source: hub/other\n")
    assert said_of(tmp_path, text) == ", line 4: the key 'source' is given twice."


def test_a_model_given_twice_is_told_with_its_line(tmp_path):
    text = changed("strategies:", "  Small: {deployment: small-engine, profile: again}\nstrategies:")
    assert said_of(tmp_path, text) == ", line 9: the key 'Small' is given twice."


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n"])
def test_a_file_that_holds_no_keys_is_told_so(tmp_path, text):
    assert said_of(tmp_path, text).startswith("keys with values are expected, found ")


def test_an_empty_file_is_told_what_it_lacks(tmp_path):
    assert said_of(tmp_path, "").startswith("deployments is missing. ")


def test_a_pool_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"^There is no file {tmp_path}/nope.yaml\.$"):
        load_pool(str(tmp_path / "nope.yaml"))


def test_a_variable_that_is_not_set_is_told_with_its_key(tmp_path, monkeypatch):
    monkeypatch.delenv("THE_MODEL", raising=False)
    assert said_of(tmp_path, changed("hub/small", "${THE_MODEL}")) == (
        "deployments.small-engine.source needs the environment variable THE_MODEL, which is not set."
    )


def test_a_folder_stands_for_the_pool_in_it(tmp_path):
    pool_of(tmp_path, POOL)
    assert load_pool(str(tmp_path)).candidates == load_pool(str(tmp_path / "pool.yaml")).candidates


def test_a_source_is_a_folder_beside_the_file_where_there_is_one(tmp_path):
    (tmp_path / "hub/small").mkdir(parents=True)
    deployment = pool_of(tmp_path, POOL).deployments["small-engine"]
    assert deployment.source == str(tmp_path / "hub/small")
    assert deployment.written_source == "hub/small"


def test_moving_a_pool_with_its_weights_changes_no_fingerprint(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name / "hub/small").mkdir(parents=True)
    here, there = (pool_of(tmp_path / name, POOL) for name in ("here", "there"))
    assert here.deployments["small-engine"].source != there.deployments["small-engine"].source
    assert here.fingerprint == there.fingerprint


def test_strategies_may_be_spelled_out_over_a_builtin_one(tmp_path):
    text = changed(
        "strategies: [vanilla, cot]\n",
        "strategies:\n"
        "  cot: {builtin: cot, max_tokens: 77, stop: ['###'], samples: [1, 5], select: majority}\n"
        "  mine:\n"
        "    profile: to the point\n"
        "    system: Be brief.\n"
        "    template: 'Q: {query} A:'\n"
        "    max_tokens: 9\n"
        "    answer: last_number\n"
        "    sampling: {temperature: 0.2}\n",
    )
    pool = pool_of(tmp_path, text)
    cot, mine = pool.strategies["cot"], pool.strategies["mine"]
    assert (cot.max_tokens, cot.stop, cot.samples, cot.answer) == (77, ("###",), (1, 5), "boxed")
    assert "step by step" in (cot.system or "")
    assert (mine.system, mine.template, mine.answer) == ("Be brief.", "Q: {query} A:", "last_number")
    assert [str(c) for c in pool.candidates] == ["Small:cot", "Small:cot@5", "Small:mine"]
    assert pool.sampling(pool.candidates[2]).temperature == 0.2


def test_an_endpoint_is_known_by_the_name_of_its_deployment_where_no_model_is_named(tmp_path):
    text = changed(
        "    source: hub/small\n",
        "    openai: {base_url: 'https://here/v1', api_key_env: MY_KEY, requests_per_minute: 60}\n",
    )
    deployment = pool_of(tmp_path, text).deployments["small-engine"]
    assert deployment.source is None
    assert deployment.num_gpus == 0
    assert deployment.endpoint is not None
    assert deployment.endpoint.model == "small-engine"
    assert deployment.endpoint.requests_per_minute == 60


@pytest.mark.parametrize(
    ("keys", "num_gpus", "context"),
    [
        ("", 1, None),
        ("    accelerator: cpu\n", 0, None),
        ("    engine: {tensor_parallel_size: 2, pipeline_parallel_size: 3}\n", 6, None),
        ("    num_gpus: 0.5\n", 0.5, None),
        ("    engine: {max_model_len: 512}\n", 1, 512),
        ("    engine: {max_model_len: 512}\n    context_tokens: 256\n", 1, 256),
        ("    engine: {max_model_len: -1}\n", 1, None),
        ("    engine: {max_model_len: auto}\n", 1, None),
    ],
)
def test_gpus_and_context_follow_from_the_engine_where_they_are_not_said(tmp_path, keys, num_gpus, context):
    deployment = pool_of(
        tmp_path, changed("    source: hub/small\n", "    source: hub/small\n" + keys)
    ).deployments["small-engine"]
    assert (deployment.num_gpus, deployment.context_tokens) == (num_gpus, context)


@pytest.mark.parametrize(
    ("keys", "requests"),
    [
        ("", 256),
        ("    engine: {max_num_seqs: 64}\n", 256),
        ("    engine: {max_num_seqs: 1024}\n", 1280),
        ("    engine: {max_num_seqs: 1024}\n    max_in_flight: 300\n", 300),
    ],
)
def test_a_large_engine_is_given_more_than_it_generates_at_once(tmp_path, keys, requests):
    pool = pool_of(tmp_path, changed("    source: hub/small\n", "    source: hub/small\n" + keys))
    assert pool.deployments["small-engine"].max_in_flight == requests


# The pool of the paper


def test_the_paper_pool_has_six_models_with_the_four_strategies():
    pool = load_pool("paper")
    assert len(pool.candidates) == 24
    assert list(pool.strategies) == ["vanilla", "cot", "cod", "pal"]


@pytest.mark.parametrize(
    ("model", "source", "usd_per_mtok", "thinks"),
    [
        ("r1-distill-qwen-14b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "1.6", True),
        ("r1-distill-qwen-7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "1.2", True),
        ("qwq-32b", "Qwen/QwQ-32B", "1.2", True),
        ("qwen2.5-14b", "Qwen/Qwen2.5-14B-Instruct", "0.8", False),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "0.3", False),
        ("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", "0.1", False),
    ],
)
def test_the_paper_pool_has_the_prices_of_table_6_and_the_sampling_of_section_4_1_5(
    model, source, usd_per_mtok, thinks
):
    pool = load_pool("paper")
    for strategy in ("vanilla", "cot", "cod", "pal"):
        candidate = Candidate(model, strategy)
        price = pool.price(candidate)
        assert pool.deployment(candidate).source == source
        assert price.output_usd_per_mtok == price.input_usd_per_mtok == Decimal(usd_per_mtok)
        assert "Table 6" in price.source
        assert price.date
        sampling = Sampling(temperature=0.6, top_p=0.95) if thinks else Sampling(temperature=0.0)
        assert pool.sampling(candidate) == sampling
        assert (model in pool.thinking) == thinks


def test_the_longest_answer_of_the_paper_pool_leaves_room_for_a_prompt():
    pool = load_pool("paper")
    for candidate in pool.candidates:
        context = pool.deployment(candidate).context_tokens
        assert context is not None
        assert context - pool.max_tokens(candidate) >= 4096


def test_what_the_paper_pool_has_behind_comment_signs_is_one_deployment_with_two_modes(tmp_path):
    text = pool_path("paper").read_text()
    pool = pool_of(tmp_path, text.replace("  #+ ", "  "))
    thinking, direct = Candidate("qwen3-4b-thinking", "cot"), Candidate("qwen3-4b-direct", "cot")
    assert len(pool.candidates) == 32
    assert pool.deployment(thinking) is pool.deployment(direct)
    assert pool.models["qwen3-4b-thinking"].chat_template_kwargs == {"enable_thinking": True}
    assert pool.models["qwen3-4b-direct"].chat_template_kwargs == {"enable_thinking": False}


def test_shipped_pools_come_with_the_package():
    for name, where in SHIPPED_POOLS.items():
        assert pool_path(name) == Path(str(resources.files("rtr_ray"))) / where


# Jobs


def job_file(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def said_of_job(folder: Path, text: str, changes: dict[str, object] | None = None) -> str:
    path = job_file(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_job(path, changes)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    rest = message.removeprefix(f"{path}: ")
    assert not [word for word in JARGON if word in rest.lower()]
    return rest


def test_a_job_needs_a_pool_a_router_a_corpus_and_an_output(tmp_path):
    job = load_job(job_file(tmp_path, JOB))
    assert (job.pool, job.router_keys.path, job.output) == ("pool.yaml", "router/", "run/")
    assert job.corpus.path == "corpus.jsonl"
    assert job.corpus.columns.query == "query"
    assert job.policy_spec == {"kind": "score", "lam": 0.7}
    assert job.budget_usd is None


def test_flags_change_a_job_by_dotted_key(tmp_path):
    changes = {
        "budget_usd": "2.50",
        "output": "s3://b/run",
        "cluster.address": "auto",
        "corpus.unreadable": "skip",
    }
    job = load_job(job_file(tmp_path, JOB + "cluster: {placement_timeout_s: 5}\n"), changes)
    assert job.budget_usd == Decimal("2.50")
    assert job.output == "s3://b/run"
    assert (job.cluster.address, job.cluster.placement_timeout_s) == ("auto", 5)
    assert (job.corpus.path, job.corpus.unreadable) == ("corpus.jsonl", "skip")


def test_a_sandbox_may_be_named_by_its_mode_alone(tmp_path):
    assert load_job(job_file(tmp_path, JOB + "sandbox: seccomp\n")).sandbox_keys.mode == "seccomp"
    with pytest.raises(ConfigError, match=r"^sandbox: mode is 'jail': that is not among the known ones"):
        _ = load_job(job_file(tmp_path, JOB + "sandbox: jail\n")).sandbox_keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("output: run/\n", "", JOB), "output is missing. Expected: the run folder, local or s3://."),
        (JOB + "budget_usd: 0\n", "budget_usd is 0: it must be above 0. Expected: dollars, above 0."),
        (JOB + "budget_usd: lots\n", "budget_usd is 'lots': a number is needed. Expected: dollars, above 0."),
        (
            changed("{path: corpus.jsonl}", "{path: corpus.jsonl, format: xml}", JOB),
            "corpus.format is 'xml': that is not among the known ones. "
            "Expected: auto, parquet, jsonl, csv or openai_batch.",
        ),
        (
            changed("{path: corpus.jsonl}", "corpus.jsonl", JOB),
            "corpus is 'corpus.jsonl': keys with values are needed.",
        ),
        (
            changed("router: router/", "router: {path: r, untraind: refuse}", JOB),
            "router.untraind: unknown key. Known keys here: ood, path, plainly, untrained. Did you mean "
            "'untrained'?",
        ),
        (
            JOB + "encoder: {actors: 0}\n",
            "encoder.actors is 0: 1 is the least. Expected: a count, or [least, most].",
        ),
        (
            JOB + "encoder: {actors: [3, 2]}\n",
            "encoder.actors is [3, 2]: the least is above the most. Expected: a count, or [least, most].",
        ),
        (
            JOB + "dispatch: {chunk: 0}\n",
            "dispatch.chunk is 0: 1 is the least. Expected: requests that travel together.",
        ),
        (
            JOB + "policy: score\n",
            "policy is 'score': keys with values are needed. Expected: kind and its fields; none: budget "
            "where there is one, else score.",
        ),
    ],
)
def test_a_mistake_in_a_job_is_told_with_its_key_and_what_was_expected(tmp_path, text, message):
    assert said_of_job(tmp_path, text) == message


def test_a_mistake_in_a_flag_is_told_with_its_key(tmp_path):
    assert said_of_job(tmp_path, JOB, {"budget_usd": "-1"}).startswith(
        "budget_usd is '-1': it must be above 0."
    )


def test_what_is_collected_is_told_by_flags_alone():
    file = load_collection(None, {"pool": "p", "queries.path": "q", "output": "o", "sample": 10})
    assert (file.pool, file.queries.path, file.output, file.sample, file.repeats) == ("p", "q", "o", 10, 1)


def test_a_flag_that_is_missing_is_told_by_its_key():
    with pytest.raises(ConfigError, match=r"^rtr-ray collect: output is missing\."):
        load_collection(None, {"pool": "p", "queries.path": "q"})
