"""Route and answer a corpus on a Ray cluster, under one budget.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/batch_route.py --config jobs/batch_route.yaml --budget-usd 25

The same as `rtr-ray run`; the job's own working directory is gone afterwards, so that corpus,
router and output are S3 addresses or folders which all nodes share.
"""

from rtr_ray.cli import app

if __name__ == "__main__":
    import sys

    app(["run", *sys.argv[1:]])
