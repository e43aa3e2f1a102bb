"""The demo's task with DAPO, with dynamic sampling and the soft overlong penalty instead of CARE.

python -m care_jax.train --config=configs/demo_dapo.py --workdir=runs/dapo
"""

from __future__ import annotations

import ml_collections

from care_jax.method import objectives
from configs import demo


def get_config() -> ml_collections.ConfigDict:
    """As configs/demo.py, with this objective."""
    objective = objectives.dapo()
    objective.overlong_buffer_len = 8  # of 32 tokens
    return demo.with_objective(objective)
