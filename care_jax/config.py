"""Every default in one place, each with its unit; a config file changes only what differs."""

from __future__ import annotations

import ml_collections

from care_jax import objectives


def base() -> ml_collections.ConfigDict:
    """The defaults: full CARE with the paper's values (method.md section 7)."""
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.model = ml_collections.ConfigDict()
    c.model.folder = ""  # Hugging Face folder: config.json, tokenizer.json, chat template, processor and generation config
    c.model.weights = "random"  # random | a run folder or checkpoint folder to start from
    c.model.compute_dtype = "bfloat16"  # float32 | bfloat16; parameters and softmax stay float32
    c.model.freeze_vision = False  # no gradient into the vision tower
    c.model.remat = True  # recompute each layer in the backward pass
    c.model.logits_chunk = 256  # tokens of one chunk of the LM head; [tokens, V] is never materialised

    c.data = ml_collections.ConfigDict()
    c.data.format = "jsonl"  # jsonl | mini_vqa
    c.data.train = ""  # jsonl: a file, images beside it; mini_vqa: the folder it is built into
    c.data.eval = ""  # the same for held-out data; mini_vqa: the same folder
    c.data.strict = False  # refuse a file with broken rows instead of dropping them
    c.data.overlong = "drop"  # drop | shrink | error, for prompts past the largest bucket; never truncated
    c.data.prompt_buckets = (1024, 2048)  # tokens, the static prompt lengths
    c.data.patch_buckets = (1024, 4096)  # patches of a prompt's images, the static sizes of the vision tower
    c.data.max_image_tokens = 1024  # tokens of one image; larger ones are scaled down
    c.data.min_image_tokens = 4  # tokens of one image; smaller ones are scaled up
    c.data.prompt_suffix = (
        "\nThink first inside <think> </think>, then give the final answer inside <answer> </answer>."
    )  # appended to every question; the extractor in verify.py reads what it asks for

    c.rollout = ml_collections.ConfigDict()
    c.rollout.num_rollouts = 8  # G
    c.rollout.response_len = 2048  # R, tokens
    c.rollout.temperature = 1.0  # above 0

    c.verify = ml_collections.ConfigDict()
    c.verify.workers = 2  # processes
    c.verify.deadline = 5.0  # seconds an item may take before its worker is killed
    c.verify.tolerance = 0.01  # relative error allowed for answer_kind "number"
    c.verify.correct_weight = 0.9  # reward of a correct answer
    c.verify.format_weight = 0.1  # reward of a well-formed response

    c.objective = objectives.care()

    c.train = ml_collections.ConfigDict()
    c.train.steps = 1000  # batches of prompts
    c.train.prompts = 512  # B, prompts of a step over all processes
    c.train.minibatches = 4  # optimizer updates a step
    c.train.microbatches = 4  # pieces of a minibatch whose gradients are added up
    c.train.eval_every = 50  # steps; 0: only at the end
    c.train.eval_examples = 0  # held-out examples of a periodic evaluation; 0: all
    c.train.checkpoint_every = 50  # steps
    c.train.keep_last = 2  # checkpoints kept besides the best
    c.train.samples_every = 10  # steps between sample groups written for the report
    c.train.max_logprob_gap = 1.0  # nats, mean sampler-to-scorer gap that stops the run

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.lr = 1e-6  # peak
    c.optimizer.warmup_steps = 0  # optimizer updates
    c.optimizer.schedule = "constant"  # constant | cosine | linear, over all updates after the warm-up
    c.optimizer.final_lr_ratio = 0.0  # of the peak, where cosine and linear end
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 1e-2  # on matrices only
    c.optimizer.clip_norm = 1.0  # global norm

    c.eval = ml_collections.ConfigDict()
    c.eval.batch_size = 64  # prompts
    c.eval.num_samples = 1  # k of pass@k; 1 decodes greedily
    c.eval.temperature = 1.0  # of the samples when num_samples > 1
    return c
