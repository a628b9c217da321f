"""Run a pool's candidates on training queries on a Ray cluster, grade, and record outcomes.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/collect_outcomes.py --config jobs/collect_outcomes.yaml

The same as `rtr-ray collect`.
"""

from rtr_ray.cli import app

if __name__ == "__main__":
    import sys

    app(["collect", *sys.argv[1:]])
