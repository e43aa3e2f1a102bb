"""The demo's task with CARE without reflection-guided resampling instead of CARE.

python -m care_jax.train --config=configs/demo_care_no_rgr.py --workdir=runs/care_no_rgr
"""

from __future__ import annotations

import ml_collections

from care_jax.method import objectives
from configs import demo


def get_config() -> ml_collections.ConfigDict:
    """As configs/demo.py, with this objective."""
    return demo.with_objective(demo.care_for_tiny(objectives.care_no_rgr()))
