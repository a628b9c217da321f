"""Estimators: recorded outcomes in, a predictor of routing tables out. One file each; `KNOWN` names them."""

KNOWN = {
    "auto": "rtr_ray.estimators.auto:Auto",
    "prior": "rtr_ray.estimators.prior:Prior",
    "knn": "rtr_ray.estimators.knn:KNN",
    "linear": "rtr_ray.estimators.linear:Linear",
    "oracle": "rtr_ray.estimators.oracle:Oracle",
    "rtr": "rtr_ray.estimators.rtr:RTR",
}
"""kind -> where its class is, loaded only when asked for."""

FITTED = {
    "auto": "rtr_ray.estimators.auto:FittedAuto",
    "prior": "rtr_ray.estimators.prior:FittedPrior",
    "knn": "rtr_ray.estimators.knn:FittedKNN",
    "linear": "rtr_ray.estimators.linear:FittedLinear",
    "oracle": "rtr_ray.estimators.oracle:FittedOracle",
    "rtr": "rtr_ray.estimators.rtr_table:FittedRTR",
}
"""kind -> the class of what is learned."""
