"""Encoders: texts in, one embedding each out. One file each; `KNOWN` names them."""

KNOWN = {
    "sentence": "rtr_ray.encoders.sentence:SentenceEncoder",
    "hash": "rtr_ray.encoders.hashing:HashEncoder",
}
"""kind -> where its class is, loaded only when asked for."""
