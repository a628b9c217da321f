"""Batch files in OpenAI's form: requests in, a corpus for each model, output and error files back."""

from rtr_ray.openai_batch.objects import Counts, budget_of, check_metadata
from rtr_ray.openai_batch.replies import Reply, reply_of, request_id
from rtr_ray.openai_batch.requests import BatchRequest, Problem, problem_of, read_batch, write_corpora
from rtr_ray.openai_batch.running import BatchRun, Runner
from rtr_ray.openai_batch.store import BatchStore

__all__ = [
    "BatchRequest",
    "BatchRun",
    "BatchStore",
    "Counts",
    "Problem",
    "Reply",
    "Runner",
    "budget_of",
    "check_metadata",
    "problem_of",
    "read_batch",
    "reply_of",
    "request_id",
    "write_corpora",
]
