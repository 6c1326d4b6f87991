"""Commands of ``python -m baal_jax``, a module each with ``main(argv) -> int``."""
