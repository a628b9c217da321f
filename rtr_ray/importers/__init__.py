"""Published results of others as tables of outcomes. One form a file; docs/outcomes.md has the mappings."""

KNOWN = {
    "routerbench": "rtr_ray.importers.routerbench:RouterBench",
    "llmrouterbench": "rtr_ray.importers.llmrouterbench:LLMRouterBench",
    "lm-eval": "rtr_ray.importers.lm_eval:LmEval",
}
