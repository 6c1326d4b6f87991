"""Commands of ``python -m baal_jax``: what each takes, as a dataclass, and a function that does it."""
