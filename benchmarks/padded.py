"""The padded layout, which packed streams replace: every prompt with J branches, all of them R tokens long.

The oracle of the packed one in tests, and what it is measured against in benchmarks.
"""

from __future__ import annotations

@struct.dataclass
class BranchHidden:
    """Hidden states of full branches after the final norm."""

    predicting: Float[Array, "B J R D"]  # the state that predicts token r (for r = 0 the prompt's last one)
    own: Float[Array, "B J R D"]  # the state at token r


def stream_attention(
    q: Float[Array, "B queries H C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N C"],
    *,
    prompt_len: Int32[Array, "B"],
    num_prompt: int,
    num_branches: int,
) -> Float[Array, "B queries H C"]:
    """Prompts and full branches: a token sees the earlier ones of the prompt and of its own branch.

        prompt of 3 (one padded), two branches of 2:

        1 0 0 0 0 0 0
        1 1 0 0 0 0 0
        1 1 1 0 0 0 0
        1 1 0 1 0 0 0
        1 1 0 1 1 0 0
        1 1 0 0 0 1 0
        1 1 0 0 0 1 1

    The stream has its branches behind the prompt; `q` holds all of its tokens, or those of the branches alone.
    """
    num_own = k.shape[1] - num_prompt

    def split(x: Array) -> tuple[Array, Array]:
        """Splits a stream into prompt and branch tokens; the prompt part is empty if q holds branches only."""
        prompt, own = x[:, : x.shape[1] - num_own], x[:, x.shape[1] - num_own :]
        return prompt, einops.rearrange(own, "b (j r) heads c -> b j r heads c", j=num_branches)

    (prompt_q, own_q), (prompt_k, own_k), (prompt_v, own_v) = split(q), split(k), split(v)

    def attend(q: Array, visible: Array) -> Array:
        prompt_kv = jnp.swapaxes(prompt_k, 1, 2), jnp.swapaxes(prompt_v, 1, 2)
        own_kv = jnp.swapaxes(own_k, 2, 3), jnp.swapaxes(own_v, 2, 3)
        return attention.branch_attention(q, prompt_kv, own_kv, prompt_len=prompt_len, own_visible=visible)

    out = attention._in_chunks(attend, own_q, jnp.tril(jnp.ones((1, 1, own_k.shape[2], own_k.shape[2]), bool)), axis=2)
    out = einops.rearrange(out, "b j r h c -> b (j r) h c")
    if not prompt_q.size:
        return out
    of_prompt = attention.causal_attention(prompt_q, prompt_k, prompt_v, implementation="xla")
    return jnp.concatenate([of_prompt, out], axis=1)


def _run_layers(
    layers: decoder.DecoderLayer,
    x: Float[Array, "B T D"],
    rope: decoder.Rope,
    deepstack: Float[Array, "E B P D"],
    *,
    prompt_len: Int32[Array, "B"],
    num_branches: int,
    num_prompt: int,
    remat: bool,
) -> Float[Array, "B T D"]:
    """Runs prompt and J full branches, which lie behind the prompt in `x`, in one pass.

    `deepstack` is added to the prompt after each of the first E layers; branches hold no images. The gradient of every
    branch flows into the one prompt stream.
    """
    attend = functools.partial(
        stream_attention,
        prompt_len=prompt_len,
        num_prompt=num_prompt,
        num_branches=num_branches,
    )

    def step(x: Array, inputs: tuple[decoder.DecoderLayer, Array]) -> tuple[Array, None]:
        layer, index = inputs
        layer = gather(layer, x.dtype)
        x, _ = layer(x, rope, lambda q, k, v: (attend(q, k, v), None))
        return decoder._add_deepstack(x, deepstack, index), None

    return jax.lax.scan(jax.checkpoint(step) if remat else step, x, decoder._indexed(layers))[0]


    def forward_branches(self, prompts: Prompts, token_ids: Int32[Array, "B J R"]) -> BranchHidden:
        """Runs prompts and full branches in one pass, every prompt once."""
        batch, num_branches, num_response = token_ids.shape
        num_prompt = prompts.token_ids.shape[1]
        tokens = self.embed_tokens(token_ids.reshape(batch, -1), self._dtype)
        offsets = jnp.tile(jnp.arange(num_response, dtype=jnp.int32), num_branches)
        positions = self._text_positions(prompts.next_position, offsets[None])
        x, deepstack = self._embed_prompts(prompts)
        x = decoder.forward_branches(
            self.layers,
            jnp.concatenate([x, tokens], axis=1),
            self._rope(jnp.concatenate([prompts.position_ids, positions], axis=-1)),
            deepstack,
            prompt_len=prompts.prompt_len,
            num_branches=num_branches,
            num_prompt=num_prompt,
            remat=self.config.remat,
            attention=self.config.attention,
        )
        x = self.norm(x)
        own = einops.rearrange(x[:, num_prompt:], "b (j r) d -> b j r d", j=num_branches)
        first = jnp.broadcast_to(_at(x[:, :num_prompt], prompts.prompt_len - 1)[:, None, None], own[:, :, :1].shape)
        return BranchHidden(predicting=jnp.concatenate([first, own[:, :, :-1]], axis=2), own=own)

def score(
    model: QwenVL,
    prompts: Prompts,
    rollouts: Rollouts,
    verdicts: Verdicts,
    forbidden_mask: Bool[Array, "V"],
    *,
    temperature: float,
    chunk: int,
) -> Scores:
    """Scores the rollouts with the trainer's graph: old log-probs and think states (docs/method.md section 1)."""
    hidden = model.forward_branches(prompts, rollouts.token_ids)
    scores = token_scores(
        model,
        hidden.predicting,
        rollouts.token_ids,
        forbidden_mask=forbidden_mask,
        temperature=temperature,
        chunk=chunk,
    )
    states = think_states(hidden.own, rollouts, verdicts)
    return Scores(logprobs=scores.logprobs, entropy=scores.entropy, think_states=states)


def split_batch(batch: Tree, pieces: int) -> Tree:
    """Deals prompts out round robin, so that each piece has some of every shard: [B, ...] to [pieces, b, ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1), batch)


def make_update(
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    *,
    minibatches: int,
    microbatches: int,
    temperature: float,
    chunk: int,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, TrainBatch, Array], UpdateOutput]:
    """The update as a function of (state, batch, forbidden_mask), to be jitted with the state donated.

    B must divide by minibatches * microbatches, and such a piece by the shards of the mesh (None: one device). Each
    shard goes over its own part of the micro-batches; the optimizer works on parameters as they lie.
    """

    def loss_of(
        params: QwenVL, batch: TrainBatch, denominators: Denominators, forbidden_mask: Array
    ) -> tuple[Array, dict[str, Array]]:
        hidden = params.forward_branches(batch.prompts, batch.token_ids)
        scores = token_scores(
            params,
            hidden.predicting,
            batch.token_ids,
            forbidden_mask=forbidden_mask,
            temperature=temperature,
            chunk=chunk,
        )
        output = loss_fn(scores.logprobs, batch, denominators=denominators)
        return output.loss, output.aux

    def gradient(params: QwenVL, minibatch: TrainBatch, forbidden_mask: Array) -> tuple[QwenVL, dict[str, Array]]:
        denominators = sum_rows(count_denominators(minibatch))

        def add(total: tuple, microbatch: TrainBatch) -> tuple[tuple, None]:
            grads, aux = jax.grad(loss_of, has_aux=True)(params, microbatch, denominators, forbidden_mask)
            return jax.tree.map(jnp.add, total, (grads, aux)), None

        pieces = split_batch(minibatch, microbatches)
        one = jax.tree.map(lambda x: x[0], pieces)
        shapes = jax.eval_shape(lambda b: jax.grad(loss_of, has_aux=True)(params, b, denominators, forbidden_mask), one)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        grads, aux = jax.lax.scan(add, zeros, pieces)[0]
        return sum_gradients(grads), sum_rows(aux)

    def specs(params: QwenVL, *_: Any) -> tuple[tuple, Any]:
        return (param_specs(params), ROWS, WHOLE), (param_specs(params), WHOLE)

    gradient_of_all = on_shards(mesh, gradient, specs)

    def update(state: TrainState, batch: TrainBatch, forbidden_mask: Array) -> UpdateOutput:
        def step(carry: tuple, minibatch: TrainBatch) -> tuple[tuple, dict[str, Array]]:
            params, opt_state = carry
            grads, aux = gradient_of_all(params, minibatch, forbidden_mask)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), _metrics(aux) | {"grad_norm": optax.tree.norm(grads)}

        pieces = split_batch(batch, minibatches)
        if mesh is not None:
            pieces = jax.lax.with_sharding_constraint(pieces, NamedSharding(mesh, PartitionSpec(None, *ROWS)))
        (params, opt_state), metrics = jax.lax.scan(step, (state.params, state.opt_state), pieces)
        state = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
        return UpdateOutput(state=state, metrics=jax.tree.map(jnp.mean, metrics))

    return update


