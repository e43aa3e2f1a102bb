"""The objectives side by side: each is the same record with other values (method.md section 6).

Nothing below train.py compares an objective's name; it reads these fields.

[study] marks a value that the sources leave open: its row under "Defaults" in docs/study/README.md says what another
value did. Where that was not clearly better, the published one stays.
"""

from __future__ import annotations

import ml_collections


def grpo() -> ml_collections.ConfigDict:
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""
    o = ml_collections.ConfigDict()
    # Which rows are updated, and their advantages.
    o.anchored = False  # True: the anchored subgroup; False: all G rollouts
    o.num_negatives = 4  # K, target negatives of a subgroup
    o.num_neighbours = 6  # M, failures nearest to the anchor that are considered
    o.selector = "farthest_first"  # farthest_first | nearest | random | mixed | farthest
    o.normalise_std = True  # divide the group's advantages by their standard deviation
    o.negative_scale = 0.5  # s, on the advantage of a negative
    o.reflected_scale = 0.25  # on a reflected sample that is still wrong
    o.equalise = True  # multiply a subgroup's advantages by sqrt(K / K')
    # The all-wrong group.
    o.rescue = ml_collections.ConfigDict()
    o.rescue.enabled = False
    o.rescue.rank_by = "sum"  # sum | mean of the old log-probs picks the pseudo-anchor [study]
    o.rescue.delta = 0.1  # pseudo-reward of the pseudo-anchor
    o.rescue.scale = "zscore"  # zscore (published) | delta (z-scored values times delta) [study]
    # Reflection-guided resampling.
    o.reflect = ml_collections.ConfigDict()
    o.reflect.enabled = False
    o.reflect.cue = (
        " Wait, the reasoning above contains an error. Find the wrong step, fix it and derive the answer again,"
        " concisely.\n"
    )
    # Tokens of the failed rationale that are kept. With train_on "continuation" cue and repair share what they leave of
    # the response's length; with "rewrite" the repair has all of it but the tag's.
    o.reflect.max_rationale_len = 1024
    o.reflect.source = "rationale"  # rationale | scratch (ablation: resample the prompt)
    o.reflect.train_on = "continuation"  # continuation | rewrite [study]
    # Region weights of the tokens.
    o.region = ml_collections.ConfigDict()
    o.region.enabled = False  # False: every sampled token weighs 1
    o.region.gamma_pos = 0.005  # weight of a correct response's rationale
    o.region.gamma_neg = 0.0  # weight of a wrong response's rationale (published: masked)
    o.region.format_weight = 0.0  # weight of tags and the stop token [study]
    # The policy loss.
    o.ratio = "token"  # token | sequence (length-normalised, GSPO)
    o.clip_low = 0.2
    o.clip_high = 0.2
    o.aggregate = "sequence"  # sequence | token | constant [study]
    o.kl_coef = 1e-2  # on the k3 estimate against the reference policy; 0: no reference pass
    # What DAPO adds.
    o.dynamic_sampling = False  # drop uniform groups and draw more prompts until the batch is full
    o.max_draws = 10  # batches drawn at the most for one step of dynamic sampling; then uniform groups fill up
    o.overlong_buffer_len = 0  # tokens before the limit where the length penalty sets in; 0: none
    o.overlong_penalty = 1.0  # reward taken off at the limit
    return o


def dapo() -> ml_collections.ConfigDict:
    """DAPO (Yu et al. 2025, arXiv 2503.14476): clip higher, token mean, dynamic sampling, soft overlong penalty."""
    o = grpo()
    o.clip_high = 0.28
    o.aggregate = "token"
    o.kl_coef = 0.0
    o.dynamic_sampling = True
    o.overlong_buffer_len = 512
    return o


def gspo() -> ml_collections.ConfigDict:
    """GSPO (Zheng et al. 2025, arXiv 2507.18071): one length-normalised ratio a sequence."""
    o = grpo()
    o.ratio = "sequence"
    o.clip_low = 3e-4
    o.clip_high = 4e-4
    o.kl_coef = 0.0
    return o


def dr_grpo() -> ml_collections.ConfigDict:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): no standard deviation, constant denominator."""
    o = grpo()
    o.normalise_std = False
    o.aggregate = "constant"
    o.kl_coef = 0.0
    return o


def care_no_rgr() -> ml_collections.ConfigDict:
    """CARE without reflection-guided resampling (method.md sections 2, 4 and 5)."""
    o = grpo()
    o.anchored = True
    o.rescue.enabled = True
    o.region.enabled = True
    return o


def care() -> ml_collections.ConfigDict:
    """CARE (arXiv 2512.19554): anchored subgroup, rescue, region weights and reflection."""
    o = care_no_rgr()
    o.reflect.enabled = True
    return o
