"""Policies: a routing table in, one choice per query out. One file each; `KNOWN` names them."""

KNOWN = {
    "budget": "rtr_ray.policies.budget:Budget",
    "fixed": "rtr_ray.policies.fixed:Fixed",
    "limits": "rtr_ray.policies.limits:Limits",
    "score": "rtr_ray.policies.score:Score",
}
"""kind -> where its class is, loaded only when asked for."""

FITTED = {
    "budget": "rtr_ray.policies.budget:FittedBudget",
    "fixed": "rtr_ray.policies.fixed:FittedFixed",
    "limits": "rtr_ray.policies.limits:FittedLimits",
    "score": "rtr_ray.policies.score:FittedScore",
}
"""kind -> the class of the fitted policy."""
