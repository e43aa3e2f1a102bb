"""The training data of CARE, about 49.3 K questions: Geometry3K, ChartQA and ViRL39K.

    python -m care_jax.data.prepare --source=geometry3k --root=geometry3k --out=data/geometry3k
    python -m care_jax.data.prepare --source=chartqa_human --root=ChartQA --out=data/chartqa_human
    python -m care_jax.data.prepare --source=chartqa_human --root=ChartQA --split=val --out=data/chartqa_human_val
    python -m care_jax.data.prepare --source=virl39k --root=ViRL39K --out=data/virl39k
    python -m care_jax.data.prepare --source=geometry3k --root=geometry3k --split=test --out=data/geometry3k_test
    python -m care_jax.train --config=configs/data_care_49k.py --workdir=runs/care --config.model.folder=...

What the paper says: the three sets, and about 49.3 K questions in all. What is inferred, since it does not say more:

* Of ChartQA only the questions written by people, train and val: with Geometry3K's train split and all of ViRL39K that
  makes 2,101 + 7,398 + 960 + 38,870 = 49,329. With ChartQA's machine-written questions it would be 69 K or more.
* The sets are mixed by their sizes, so that all have their epochs at the same pace.
* Nothing is filtered by difficulty or taken out as a repeat of a benchmark; --keep and --against of the preparation do
  both. Some 190 questions of MathVista and MathVerse come from Geometry3K, and 50 from ChartQA.
* Held-out accuracy is that of Geometry3K's test split, as in the authors' code.
"""

from __future__ import annotations

import ml_collections

from care_jax import config as config_lib

# Folder and weight: the questions of each set, before unusable ones are dropped.
MIXTURE = (
    ("data/geometry3k", 2_101),
    ("data/chartqa_human", 7_398),
    ("data/chartqa_human_val", 960),
    ("data/virl39k", 38_870),
)


def get_config() -> ml_collections.ConfigDict:
    """The defaults with this data; model.folder and model.weights are yours."""
    c = config_lib.base()
    c.data.format = "prepared"
    with c.ignore_type():  # elsewhere it is one path
        c.data.train = MIXTURE
    c.data.eval = "data/geometry3k_test"
    return c


def with_lora(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A run of the paper with adapters of rank 64 in place of all parameters, for the chips that most people have.

    Adapters want about ten times the learning rate of a full training. Batch and responses are smaller than the
    paper's: decoding is what fills a small chip.
    """
    c.model.lora.rank = 64
    c.model.lora.alpha = 64.0
    c.optimizer.lr = 1e-5
    c.train.prompts = 64
    c.rollout.response_len = 1024
    c.objective.reflect.max_rationale_len = 512
    c.train.stream_len = 4096
    return c
