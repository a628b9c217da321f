"""Executors: a chunk of requests in, replies as they come. One file each; `KNOWN` names them.

The one that calls Ray Serve is `rtr_ray.distributed.executor`: this folder imports no ray.
"""

KNOWN = {
    "openai": "rtr_ray.executors.openai:OpenAIExecutor",
    "replay": "rtr_ray.executors.replay:ReplayExecutor",
}
"""kind -> where its class is, loaded only when asked for."""
