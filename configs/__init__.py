"""One small file a run: get_config() starts from care_jax.config.base() and changes what differs."""
