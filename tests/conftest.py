"""Settings that come before the imports of jax and care_jax, and the models and data that all tests share."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

# Several fake CPU devices and no hub, for this process and those it starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 " + os.environ.get("XLA_FLAGS", "")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import filelock
import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

from tests import shape_checks

# Annotations are checked on every call in the tests (shape_checks.py).
install_import_hook(shape_checks.CHECKED, shape_checks.TYPECHECKER)

from care_jax import models  # noqa: E402
from care_jax.inputs.batch import collate  # noqa: E402
from care_jax.inputs.processor import Processor, load_processor  # noqa: E402
from care_jax.inputs.prompts import encode_prompt  # noqa: E402
from care_jax.rewards.response_format import ANSWER_TAGS  # noqa: E402
from care_jax.run.compilation_cache import opened  # noqa: E402
from care_jax.run.compile_guard import CompileGuard  # noqa: E402
from care_jax.structs import Prompts  # noqa: E402
from tests.end_to_end import SmallTask, make_small_task  # noqa: E402
from tests.pictures import encode, picture, question  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The Hugging Face folder of the tiny Qwen2.5-VL: config, tokenizer and processor files, no weights."""
    return Path(__file__).parents[1] / "care_jax" / "models" / "tiny_qwen2_5_vl"


@pytest.fixture(scope="session")
def tiny_processor(tiny_folder, tmp_path_factory) -> Processor:
    """One bucket of each kind; images down to one token, which is less than a window."""
    folder = tmp_path_factory.mktemp("processor") / "tiny"
    shutil.copytree(tiny_folder, folder)
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    fields["size"]["shortest_edge"] = 28**2
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return load_processor(
        folder,
        response_format=dataclasses.replace(ANSWER_TAGS, request=""),
        prompt_buckets=(40,),
        patch_buckets=(64,),
        max_image_tokens=16,
        min_image_tokens=1,
        overlong="error",
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_folder) -> models.QwenVL:
    """A float32 model whose norms, biases and head are far from their initial values, so that each of them counts."""
    config = models.load_model_config(tiny_folder)
    rng = np.random.default_rng(0)
    params = {}
    for name, leaf in models.params_to_dict(models.abstract_model(config)).items():
        if name.endswith("kernel"):
            mean, std = 0.0, leaf.shape[-2] ** -0.5
        elif name == "embed_tokens.weight":
            mean, std = 0.0, 0.02
        else:
            mean, std = (0.0 if name.endswith("bias") else 1.0), 0.1
        params[name] = rng.normal(mean, std, leaf.shape).astype(np.float32)
    params["norm.weight"] *= 6.0  # or the distribution over tokens is almost flat
    return models.params_from_dict(config, jax.device_put(params))


@pytest.fixture(scope="session")
def tiny_prompts(tiny_processor) -> Prompts:
    """Three prompts of different lengths in one padded batch: one image, two images, none."""
    records = [
        question("<image>=?", encode(picture(84, 84))),
        question("<image>+<image>", encode(picture(140, 28)), encode(picture(28, 84))),
        question("1+2=?"),
    ]
    return jax.device_put(collate(tiny_processor, [encode_prompt(tiny_processor, record) for record in records]))


@pytest.fixture(scope="session")
def small_task(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> SmallTask:
    """A small cold-started model and its data, made once for all of xdist's workers, which share its compilations."""
    folder = tmp_path_factory.getbasetemp() / "small_task"
    if worker_id != "master":
        folder = folder.parents[1] / "small_task"
    with filelock.FileLock(f"{folder}.lock"):
        if not (made := folder.with_name("small_task.made")).exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker in which it failed
            make_small_task(folder)
            made.touch()
    return SmallTask(folder)


@pytest.fixture(scope="module")
def quick_to_compile() -> Iterator[None]:
    """For tests of which compiling is most, and whose results do not hang on how well it is done."""
    if jax.config.read("jax_disable_most_optimizations"):  # as in `make test`
        yield
        return
    jax.clear_caches()  # whose keys do not know of it
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def cached(small_task: SmallTask, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallTask]:
    """The small task for runs in this process: one device, shared compilations, SIGTERM's handler put back."""
    only = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: only)
    handler = signal.getsignal(signal.SIGTERM)
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with (
        CompileGuard() as guard,
        opened(small_task.folder, guard) as warm_up,
        jax.numpy_dtype_promotion("standard"),  # optax's Adam has b1**count with an integer count
    ):
        warm_up.write_cache()
        yield small_task
    jax.config.update("jax_disable_most_optimizations", before)
    signal.signal(signal.SIGTERM, handler)
