"""RL post-training of Qwen-VL models with CARE in pure JAX.

A step is the table in step.py. The rooms, from low to high; each imports only lower ones:

parallel     the mesh, what its axes divide, what shards and processes exchange
models       Qwen2.5-VL, Qwen3-VL and Qwen3.5 as pytrees of named parameters
rewards      the form of a response, and whether its answer is right
inputs       records to arrays on the host: chat template, images, positions
method       the paper: objectives, subgroup, rescue, reflection, advantages, loss
data         records from files and the embedded task, through a loader that resumes
stages       the device programs of a step, compiled before its first run
checkpoints  state and data position in one folder, verified when read
evals        held-out questions, benchmarks, and questions that are asked with generate
run          a session: resuming, stopping, what is written down
planning     what a step takes of a TPU slice
page         the report, and the page and endpoint that generate serves

Commands: cold_start (supervised), train (RL), evaluate, generate (answers to questions), judge (pairs of gold and
response), report, plan (compile for a TPU topology), demo.
"""

__version__ = "0.1.0"
