"""RL post-training of Qwen-VL models with CARE in pure JAX. The pipeline of a step, in order:

data       records from JSONL or the embedded task, through a checkpointable grain loader
processor  on the host: resize, patchify, chat template, positions; prompts of static shape
rollout    prefill each prompt once, decode G responses that share it
verify     is each answer right, is the format; in killable workers
score      log-probs and pooled think states, with the trainer's own graph
regions    which tokens are think, answer and format, from character offsets
subgroup   the anchor and its hard negatives
reflect    repair one negative with a cue and verify it again
rescue     what a group without a correct answer still teaches
advantage  z-scores, scaling, and region weights to tokens
loss       ratio, clip, KL, aggregation
update     one jitted optimizer step

Entry points: train (RL), cold_start (supervised), evaluate, demo, plan (compile for a TPU topology), report.
"""
