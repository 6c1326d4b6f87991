"""Commands of ``baal-jax``: what each takes, as a dataclass, and a function that does it."""
