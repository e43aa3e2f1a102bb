"""The demo's task with Dr. GRPO instead of CARE.

python -m care_jax.train --config=configs/demo_dr_grpo.py --workdir=runs/dr_grpo
"""

from __future__ import annotations

import ml_collections

from care_jax.method import objectives
from configs import demo


def get_config() -> ml_collections.ConfigDict:
    """As configs/demo.py, with this objective."""
    return demo.with_objective(objectives.dr_grpo())
