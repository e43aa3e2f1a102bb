"""The runs: get_config() starts from care_jax.config.base() and changes what differs.

A file may have several runs, chosen by a word after its name: --config=configs/demo.py:grpo.
"""
