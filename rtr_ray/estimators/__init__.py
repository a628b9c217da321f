"""Estimators: recorded outcomes in, a predictor of routing tables out. One file each; `KNOWN` names them."""

KNOWN = {
    "auto": "rtr_ray.estimators.auto:Auto",
    "prior": "rtr_ray.estimators.prior:Prior",
    "knn": "rtr_ray.estimators.knn:KNN",
    "linear": "rtr_ray.estimators.linear:Linear",
    "oracle": "rtr_ray.estimators.oracle:Oracle",
    "rtr": "rtr_ray.estimators.rtr:RTR",
    "kernel": "rtr_ray.estimators.kernel:Kernel",
    "vocabulary": "rtr_ray.estimators.vocabulary:Vocabulary",
    "binary": "rtr_ray.estimators.binary:Binary",
    "bradley_terry": "rtr_ray.estimators.bradley_terry:BradleyTerry",
    "clustering": "rtr_ray.estimators.clustering:Clustering",
    "irt": "rtr_ray.estimators.irt:IRT",
    "matrix_factorization": "rtr_ray.estimators.matrix_factorization:MatrixFactorization",
    "nclass": "rtr_ray.estimators.nclass:NClass",
    "nlabel": "rtr_ray.estimators.nlabel:NLabel",
    "tfidf_clustering": "rtr_ray.estimators.tfidf_clustering:TfidfClustering",
}
"""kind -> where its class is, loaded only when asked for."""

FITTED = {
    "auto": "rtr_ray.estimators.auto:FittedAuto",
    "prior": "rtr_ray.estimators.prior:FittedPrior",
    "knn": "rtr_ray.estimators.knn:FittedKNN",
    "linear": "rtr_ray.estimators.linear:FittedLinear",
    "oracle": "rtr_ray.estimators.oracle:FittedOracle",
    "rtr": "rtr_ray.estimators.rtr_table:FittedRTR",
    "kernel": "rtr_ray.estimators.kernel:FittedKernel",
    "vocabulary": "rtr_ray.estimators.vocabulary:FittedVocabulary",
    "binary": "rtr_ray.estimators.binary:FittedBinary",
    "bradley_terry": "rtr_ray.estimators.bradley_terry:FittedBradleyTerry",
    "clustering": "rtr_ray.estimators.clustering:FittedClustering",
    "irt": "rtr_ray.estimators.irt:FittedIRT",
    "matrix_factorization": "rtr_ray.estimators.matrix_factorization:FittedMatrixFactorization",
    "nclass": "rtr_ray.estimators.nclass:FittedNClass",
    "nlabel": "rtr_ray.estimators.nlabel:FittedNLabel",
    "tfidf_clustering": "rtr_ray.estimators.tfidf_clustering:FittedTfidfClustering",
}
"""kind -> the class of what is learned."""
