"""The paper, and only it: which rollouts are updated, their advantages, and the loss (docs/method.md)."""
