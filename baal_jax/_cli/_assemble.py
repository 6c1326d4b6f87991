"""What commands work with, put together from their options: data, network, trainer and posteriors."""

import importlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from baal_jax import data, losses, models, posteriors
from baal_jax._util import files, images
from baal_jax.training import trainer
from baal_jax.typing import Dataset, Model, Posterior

PICTURES = (".png", ".jpg", ".jpeg")
_CURE = "correct it, or save it again with numpy.savez"


class Problem(NamedTuple):
    """A data set as a study works on it."""

    train: Dataset
    test: Dataset
    num_classes: int | None = None  # None where targets are numbers
    class_names: list[str] | None = None
    images: Any = None  # [N, H, W, 1 or 3], what can be shown of the pool


class Pool(NamedTuple):
    """What people may be asked to label."""

    inputs: np.ndarray  # [N, …]
    references: list[str]  # what is shown of them
    embeddings: np.ndarray  # float32[N, D], numbers that a cold start can compare


def problem(options: Any) -> Problem:
    """The data set that the options of a study name; digits are images for the network that needs them."""
    name = options.data
    if name == "digits":
        train, test = data.digits(image=options.model == "cnn")
        pictures = np.asarray(train.inputs).reshape(-1, 8, 8, 1)
        return Problem(train, test, 10, [str(digit) for digit in range(10)], pictures)
    if name == "cifar10":
        train, test = data.cifar10(options.data_dir)
        return Problem(train, test, 10, list(data.CIFAR10_CLASSES), train.inputs)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"data={name!r} is neither digits, cifar10 nor a file: give the path of an .npz or UCI table")
    if path.suffix == ".npz":
        return _problem_from_arrays(path)
    return Problem(*data.uci(path, num_test=options.num_test, seed=options.seed)[:2])


def _problem_from_arrays(path: Path) -> Problem:
    names = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    with files.about(f"data={str(path)!r}", _CURE):
        arrays = _arrays(path, names, ["class_names"])
        train, test = (data.from_arrays(*(arrays[name] for name in part)) for part in (names[:2], names[2:]))
        kinds = [(part.inputs.shape[1:], part.targets.shape[1:], part.targets.dtype.kind) for part in (train, test)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"train and test differ in the shapes or the kind of an example: {kinds}")
        class_names, num_classes = _texts(arrays["class_names"]) if "class_names" in arrays else None, None
        if kinds[0][2] == "i":
            num_classes = max(2, int(max(train.targets.max(), test.targets.max())) + 1, len(class_names or ()))
            if class_names and (len({*class_names}) < num_classes or not all(name.strip() for name in class_names)):
                raise ValueError(f"class_names={class_names} are not {num_classes} different names, none empty")
    shape = np.shape(train.inputs)
    return Problem(train, test, num_classes, class_names, train.inputs if _are_pictures(shape) else None)


def pool(options: Any, kind: str) -> Pool:
    """The examples that the options of a labelling project name; ``kind`` is that of what people are shown."""
    name, path = options.data, Path(options.data)
    if path.is_dir():
        return _pool_from_pictures(path, options.url_prefix, (options.image_size, options.image_size))
    if not path.is_file() or path.suffix != ".npz":
        raise ValueError(f"data={name!r} is neither a folder of images nor an .npz file")
    with files.about(f"data={name!r}", _CURE):
        arrays = _arrays(path, ["inputs"], ["references", "embeddings"])
        inputs = np.asarray(data.from_arrays(arrays["inputs"]).inputs)
        embeddings = np.asarray(data.from_arrays(arrays.get("embeddings", inputs)).inputs)
        references = _texts(arrays["references"]) if "references" in arrays else None
    if references is None and kind == "image" and _are_pictures(inputs.shape):
        references = [f"{options.url_prefix}images/{i}.png" for i in range(len(inputs))]
    if references is None:
        raise ValueError(f"data={name!r} lacks references: give what people are shown, one for each input")
    for what, rows in (("references", references), ("embeddings", embeddings)):
        if len(rows) != len(inputs):
            raise ValueError(f"data={name!r} holds {len(rows)} {what} for {len(inputs)} inputs")
    return Pool(inputs, references, _flat(embeddings))


def _pool_from_pictures(folder: Path, url_prefix: str, size: tuple[int, int]) -> Pool:
    paths = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not paths:
        raise ValueError(f"data={str(folder)!r} holds no {', '.join(PICTURES)} files: give a folder of images")
    pictures = []
    for file in paths:
        with files.about(repr(str(file)), "rename it: its name is no text"):
            str(file).encode("utf-8")
        with files.about(file, "repair or remove it"):
            pictures.append(images.decode(file.read_bytes(), size, 3))
    names = [file.relative_to(folder).as_posix() for file in paths]
    names = [url_prefix + quote(name) if url_prefix else name for name in names]  # quoted where it is part of a URL
    inputs = np.stack(pictures)
    return Pool(inputs, names, _flat(inputs))


def _arrays(path: Path, required: Sequence[str], optional: Sequence[str]) -> dict[str, np.ndarray]:
    # What a damaged header leaves out of an array is read for its checksum alone.
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
        if missing := [name for name in required if name not in file]:
            raise ValueError(f"data={str(path)!r} lacks {', '.join(missing)}: it has {', '.join(file) or 'no arrays'}")
        return {name: file[name] for name in (*required, *optional) if name in file}


def _texts(array: np.ndarray) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "Uiu" or not array.itemsize:  # texts of no length take no room
        raise ValueError(f"{array.dtype}{array.shape} is no list of texts, as numpy.array(['cat', 'dog']) is")
    return [str(text) for text in array]


def _are_pictures(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and shape[-1] in (1, 3)


def _flat(rows: np.ndarray) -> np.ndarray:
    """``float32[N, D]``; bytes as numbers between 0 and 1."""
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    return flat / 255 if rows.dtype == np.uint8 else flat


def learners(options: Any, names: Any, num_classes: int | None, shape: Any) -> tuple[Model, dict[str, Posterior]]:
    """The network that options name, and posteriors of it and its trainer by name; without classes for numbers."""
    model = network(options.model, num_classes or 1, shape, options.rate)
    loss = losses.squared_error if num_classes is None else losses.cross_entropy
    fit = trainer(optax.adam(options.learning_rate), loss, num_steps=options.num_steps, batch_size=options.batch_size)
    for name in names:
        if name not in posteriors.REGISTRY:
            raise ValueError(f"posterior={name!r} is unknown: use one of {', '.join(posteriors.REGISTRY)}")
    return model, {name: posteriors.REGISTRY[name](model, fit) for name in names}


def network(name: str, num_outputs: int, input_shape: Sequence[int], rate: float) -> Model:
    """A network by its name, as commands document it; ``rate`` is the dropout of those that are built in."""
    if name == "mlp":
        return models.from_linen(MLP(num_outputs, rate))
    if name == "cnn":
        if len(input_shape) != 3:
            raise ValueError(f"model='cnn' needs images [H, W, C], but inputs are {tuple(input_shape)}: use mlp")
        return models.from_linen(SmallCNN(num_outputs, rate))
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"model={name!r} is unknown: use mlp or cnn, or package.module:factory for a network of yours")
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model={name!r} cannot be imported ({error}): is its folder in PYTHONPATH?") from error
    made = factory(num_outputs)
    if isinstance(made, nn.Module):
        return models.from_linen(made)
    if callable(made):
        return models.from_nnx(made)
    raise ValueError(f"model={name!r} made {type(made).__name__}: return a linen module, or rngs -> nnx module")


class MLP(nn.Module):
    """Dense layers, each followed by ReLU and dropout."""

    num_outputs: int
    rate: float = 0.5
    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, …] -> [B, num_outputs]``."""
        x = _scaled(x).reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(nn.Dense(width)(x)))
        return nn.Dense(self.num_outputs)(x)


class SmallCNN(nn.Module):
    """Convolutions with 2×2 pooling, and one dense layer with dropout: the draws share all but the last layer."""

    num_outputs: int
    rate: float = 0.5
    channels: Sequence[int] = (32, 64)
    hidden: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, C] -> [B, num_outputs]``."""
        x = _scaled(x)
        for width in self.channels:
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs)(nn.Dropout(self.rate, deterministic=not train)(x))


def _scaled(x: jax.Array) -> jax.Array:
    """Integer pixels as floats in [-1, 1]; floats as they are."""
    return x.astype(jnp.float32) / 127.5 - 1.0 if jnp.issubdtype(x.dtype, jnp.integer) else x
