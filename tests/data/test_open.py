"""One way to name data: what a word, a file or a folder becomes, and what is said of it."""

import json

import numpy as np
import pytest
from PIL import Image

from baal_jax import data

RNG = np.random.default_rng(0)


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def rows(line, count=30):
    return "".join(line(i) + "\n" for i in range(count))


def raw(opened):
    """All rows, whether held out or not."""
    return np.concatenate([opened.train.inputs, opened.test.inputs])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("ä;b;kind\n" + rows(lambda i: f"{i * 7 % 30},5;1.000,{i};{'yes' if i % 3 else 'no'}"), "utf-8-sig"),
        ("ä\tb\tkind\n" + rows(lambda i: f"{i * 7 % 30}.5\t1000.{i}\t{'yes' if i % 3 else 'no'}"), "utf-8"),
        ("ä,b,kind\n" + rows(lambda i: f'"{i * 7 % 30}.5","1,000.{i}",{"yes" if i % 3 else "no"}'), "cp1252"),
        ("ä b kind\n" + rows(lambda i: f"  {i * 7 % 30}.5   1000.{i} {'yes' if i % 3 else 'no'}"), "utf-8"),
        (rows(lambda i: json.dumps({"ä": i * 7 % 30 + 0.5, "b": float(f"1000.{i}"), "kind": "yes" if i % 3 else "no"})),
         "utf-8"),
    ],
    ids=["semicolons and decimal commas, with a mark", "tabs", "thousands, in Windows-1252", "blanks", "lines of JSON"],
)  # fmt: skip
def test_a_table_is_the_same_however_it_is_written(tmp_path, text, encoding):
    name = "table.jsonl" if text.startswith("{") else "table.csv"
    opened = data.open(written(tmp_path / name, text, encoding), target="kind", num_test=6)
    expected = np.array([[i * 7 % 30 + 0.5, float(f"1000.{i}")] for i in range(30)])
    order = np.random.default_rng(0).permutation(30)
    known = expected[np.sort(order[6:])]
    scaled = (expected - known.mean(axis=0)) / known.std(axis=0)
    np.testing.assert_allclose(opened.train.inputs, scaled[np.sort(order[6:])], rtol=1e-4)
    np.testing.assert_allclose(opened.test.inputs, scaled[np.sort(order[:6])], rtol=1e-4)
    assert opened.class_names == ("no", "yes")
    assert np.sum(opened.train.targets == 0) + np.sum(opened.test.targets == 0) == 10
    assert opened.said.startswith(f"{name}: 24 rows to choose from and 6 held out, classes no 10, yes 20; 2 columns")
    assert ("Windows-1252" in opened.said) == (encoding == "cp1252")


def test_words_gaps_and_needless_columns(tmp_path):
    lines = ["id,size,colour,town,always,name,price\n"]
    colours, towns = ["red", "blue", ""], [f"t{i}" for i in range(25)]
    for i in range(60):
        size = "NA" if i % 10 == 0 else str(i % 7)
        price = "" if i == 3 else str(i * 1.25)
        lines.append(f"{i},{size},{colours[i % 3]},{towns[i % 25]},same,n{i},{price}\n")
    opened = data.open(written(tmp_path / "t.csv", "".join(lines)), target="price", num_test=9)
    assert opened.num_classes is None
    assert opened.train.inputs.shape == (50, 4)
    np.testing.assert_allclose([opened.train.targets.mean(), opened.train.targets.std()], [0, 1], atol=1e-6)
    kept = [i for i in range(60) if i != 3]
    order = np.random.default_rng(0).permutation(59)
    train = [kept[i] for i in np.sort(order[9:])]
    sizes = np.array([np.nan if i % 10 == 0 else i % 7 for i in train])
    sizes = np.where(np.isnan(sizes), np.nanmedian(sizes), sizes)
    np.testing.assert_allclose(opened.train.inputs[:, 0], (sizes - sizes.mean()) / sizes.std(), rtol=1e-4, atol=1e-6)
    # A word has a column, blue before red, and what is missing is neither.
    np.testing.assert_array_equal(opened.train.inputs[:, 1:3], [[i % 3 == 1, i % 3 == 0] for i in train])
    places = np.array([sorted(towns).index(towns[i % 25]) for i in train], float)
    np.testing.assert_allclose(opened.train.inputs[:, 3], (places - places.mean()) / places.std(), rtol=1e-4, atol=1e-6)
    for part in ("1 columns of numbers, 1 of words, a column each, 1 of many words, by their order",
                 "6 of size, 20 of colour", "id (number of the row), always (one value), name (59 different words)",
                 "1 rows without price left out", "price of mean"):  # fmt: skip
        assert part in opened.said


def test_what_a_target_is_can_be_said(tmp_path):
    path = written(tmp_path / "t.csv", "x,y,z\n" + rows(lambda i: f"{i * 3 % 31},{i % 4 + 3},{i / 7:.3f}", 40))
    assert data.open(path, target="y").class_names == ("3", "4", "5", "6")
    assert data.open(path, target="y", task="regression").num_classes is None
    assert data.open(path, target="z").num_classes is None
    for options, message in (
        ({"target": "z", "task": "classification"}, "has 40 different values in 40 rows, no classes"),
        ({"target": "w"}, "target='w' is no column of t.csv: name one of x, y, z"),
        ({}, "target is missing: name one of x, y, z"),
        ({"target": "y", "task": "ranking"}, "task='ranking' must be classification or regression"),
        ({"target": "y", "num_test": 39}, "num_test=39 leaves too little"),
    ):
        with pytest.raises(ValueError, match=message):
            data.open(path, **options)
    words = written(tmp_path / "w.csv", "x,y\n" + rows(lambda i: f"{i * 3 % 31},{'ab'[i % 2]}"))
    with pytest.raises(ValueError, match="column 'y' holds words, such as 'a'"):
        data.open(words, target="y", task="regression")
    for text, message in (
        ("x,y\n1,2\n3\n", "example 2: 1 cells, but 2 names"),
        ("", "holds 0 rows"),
        ("x,y\n", "holds 1 rows"),
        ("x,x,y\n1,2,0\n2,3,1\n", "several columns 'x'"),
        ("x,y\n1e999,2\n2,3\n3,2\n", "column 'x' holds inf"),
        ("x,y\n" + rows(lambda i: f"{'err' if i == 4 else i * 7 % 30},{i % 2}"), "'x', example 5: 'err' is no number"),
        ("x,y\n" + rows(lambda i: f"{i * 7 % 30}%,{i % 2}"), "'0%' is no number"),
        ("x\ty\n" + rows(lambda i: f"1,{100 + i}\t{i % 2}"), "'1,100' may have a decimal comma or one between"),
        ("x;y\n" + rows(lambda i: f"{i * 7 % 30};{['1', '1.0', '2'][i % 3]}"), "has '1' and '1.0', one number"),
        ("land,2019,2020\n" + rows(lambda i: f"{'uvw'[i % 3]},{i * 7 % 30},{i % 2}"), "may be names or an example"),
        ("x,y\n1,2\n1,3\n", "2 rows with y: at least 3"),
        ("x,y\n1,2\n1,3\n1,2\n1,3\n1,2\n", "no column is left for inputs: x .one value"),
        ('x,y\n"1,2\n1,3\n', "save it as a table"),
    ):
        with pytest.raises(ValueError, match=message):
            data.open(written(tmp_path / "bad.csv", text), target="y")
    with pytest.raises(ValueError, match=r"line 2.*one object of JSON a line"):
        data.open(written(tmp_path / "bad.jsonl", '{"a": 1}\n[2]\n'), target="a")
    nameless = data.open(written(tmp_path / "n.csv", rows(lambda i: f"{i * 3 % 31},{i % 2}")), target="2")
    assert "no names in its first line: columns are 1 to 2" in nameless.said
    years = data.open(
        written(tmp_path / "y.csv", "2019,x,y\n" + rows(lambda i: f"{i * 3 % 31},{i % 5},{'ab'[i % 2]}")), target="y"
    )
    assert years.train.inputs.shape == (24, 2)


def test_cells_are_read_as_they_are_meant(tmp_path):
    """Marks of a column agree, quoted cells have lines of their own, and an at sign begins no comment."""
    line = lambda i: f'"hello\n@bob, {i} times\u2028and more words than four","{["none", "brick", "stone"][i % 3]}"'  # noqa: E731
    opened = data.open(written(tmp_path / "a.csv", "text,y\n" + rows(line)), target="y", num_test=6)
    assert opened.class_names == ("brick", "none", "stone")
    assert len(raw(opened)) == 30
    values = ["1.250", "980,5", "1.100,75", "310,25"]
    opened = data.open(
        written(tmp_path / "b.csv", "x;y\n" + rows(lambda i: f"{i * 7 % 30};{values[i % 4]}", 40)), target="y"
    )
    assert "y of mean" in opened.said
    found = np.unique(np.round(np.concatenate([opened.train.targets, opened.test.targets]), 4))
    spread = np.array([310.25, 980.5, 1100.75, 1250.0])
    np.testing.assert_allclose(np.diff(found) / np.diff(found)[0], np.diff(spread) / np.diff(spread)[0], rtol=1e-3)
    early = data.open(
        written(tmp_path / "c.csv", "?,1,2\n" + rows(lambda i: f"{i * 7 % 30},{i % 7},{i % 2}")), target="3"
    )
    assert len(raw(early)) == 31
    later = data.open(
        written(tmp_path / "d.csv", "t,z\n" + rows(lambda i: f"{1.7e9 + i + 0.5},{i * 7 % 30}")), target="t"
    )
    assert len(np.unique(later.train.targets)) == 24
    excel = data.open(
        written(tmp_path / "e.csv", "x\ty\n" + rows(lambda i: f"{i * 7 % 30}\t{i % 2}"), "utf-16"), target="y"
    )
    assert len(raw(excel)) == 30
    arff = "@relation r\n@attribute a real\n@attribute b {u,v}\n@data\n" + rows(lambda i: f"{i * 7 % 30},{'uv'[i % 2]}")
    assert data.open(written(tmp_path / "f.dat", arff), target="b").class_names == ("u", "v")
    blanks = written(tmp_path / "g.txt", rows(lambda i: f"{i * 7 % 30} {i * i % 31} {i / 7:.2f}"))
    assert data.open(blanks).num_classes is None


def test_options_of_another_kind_of_data_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(1))
    (tmp_path / "folder").mkdir()
    for spec, options in (
        ("digits", {"num_test": 5}),
        ("digits", {"encode": "words"}),
        ("cifar10", {"target": "x"}),
        (tmp_path / "a.npz", {"image_size": 4}),
        (tmp_path / "folder", {"task": "regression"}),
        ([(1, 2)], {"task": "regression"}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* has no use for it"):
            data.open(spec, **options)


def test_sentences_become_numbers(tmp_path):
    """Of the rows to choose from alone: a word that only a held out row has says nothing."""
    said = ["the cat sat on the mat and slept all day", "stock markets fell sharply in early trading today"]
    lines = [json.dumps({"text": f"{said[i % 2]}, number {i} of many", "label": i % 2}) for i in range(60)]
    path = written(tmp_path / "texts.jsonl", "\n".join(lines))
    opened = data.open(path, target="label")
    assert "1 of sentences" in opened.said
    near = opened.train.inputs @ opened.train.inputs.T
    same = opened.train.targets[:, None] == opened.train.targets[None]
    assert near[same].mean() > 5 * abs(near[~same].mean())
    lengths = data.open(path, target="label", encode=lambda texts: np.array([[len(text), 1] for text in texts]))
    assert lengths.train.inputs.shape == (48, 2)
    for encode, message in (
        (lambda texts: np.zeros(3), "encode gave float64.3,. for 60 texts"),
        ("bert", "must be tfidf"),
    ):
        with pytest.raises(ValueError, match=message):
            data.open(path, target="label", encode=encode)


def photo(path, value=None, exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 255, (20, 24, 3), dtype=np.uint8) if value is None else np.full((8, 8, 3), value, np.uint8)
    image = Image.fromarray(pixels)
    more = {"exif": exif} if exif else {}
    image.save(path, **more)


def test_folders_of_classes_and_of_images(tmp_path):
    for i, kind in enumerate(["jpg", "png", "webp", "bmp", "tif", "gif"]):
        photo(tmp_path / "pets" / ("cat" if i % 2 else "dog") / "deeper" / f"{i}.{kind}", 40 * i)
    photo(tmp_path / "pets" / ".thumbs" / "a.jpg")
    (tmp_path / "pets" / "cat" / "._0.jpg").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "pets" / "notes.txt").write_text("no image")
    opened = data.open(tmp_path / "pets", image_size=4, num_test=2)
    assert [opened.train.inputs.shape, opened.class_names] == [(4, 4, 4, 3), ("cat", "dog")]
    assert "classes cat 3, dog 3; 2 hidden files left out; 1 files of other kinds left out" in opened.said
    for image, name, target in zip(opened.train.inputs, opened.references, opened.train.targets, strict=True):
        place = int(name.split("/")[-1].split(".")[0])
        assert [opened.class_names[target], abs(int(image.mean()) - 40 * place) < 4] == [name.split("/")[0], True]
    whole = data.open(tmp_path / "pets", num_test=0)
    assert [len(whole.train.inputs), whole.test] == [6, None]
    photo(tmp_path / "pets" / "stray.png")
    with pytest.raises(ValueError, match=r"stray.png is beside the folders of classes"):
        data.open(tmp_path / "pets")
    # A split that is there is kept, and images without folders have no labels.
    for part, count in (("train", 3), ("test", 2)):
        for kind in "ab":
            for i in range(count):
                photo(tmp_path / "split" / part / kind / f"{i}.png")
    split = data.open(tmp_path / "split")
    assert [len(split.train.inputs), len(split.test.inputs), split.class_names] == [6, 4, ("a", "b")]
    for half, message in (
        ("train/a/0.png test/0.png", "must each hold one folder"),
        ("val/a/0.png test/b/0.png", "no train"),
    ):
        for name in half.split():
            photo(tmp_path / message / name)
        with pytest.raises(ValueError, match=message):
            data.open(tmp_path / message)
    flat = data.open(tmp_path / "split" / "train" / "a")
    assert [flat.train.targets, flat.test, flat.references] == [None, None, ("0.png", "1.png", "2.png")]
    (tmp_path / "split" / "train" / "a" / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    with pytest.raises(ValueError, match=r"x.jpg: cannot be read .*repair or remove it"):
        data.open(tmp_path / "split")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        data.open(tmp_path / "empty")


def test_photographs_are_turned_as_every_viewer_shows_them(tmp_path):
    """Orientation 6: the left half of the file is the upper half of the picture."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    shown = data.open(tmp_path).train.inputs[0]
    assert shown[:12].mean() > 240
    assert shown[20:].mean() < 15


def test_sequences_of_pairs_and_mappings():
    pairs = [(np.full(3, i, np.float32), i % 2) for i in range(20)]
    named = [{"image": image, "label": label} for image, label in pairs]
    for given in (pairs, named):
        opened = data.open(given, num_test=5)
        np.testing.assert_array_equal(opened.train.inputs[:, 0] % 2, opened.train.targets)
        assert [opened.num_classes, len(opened.test.inputs)] == [2, 5]
    with pytest.raises(ValueError, match="target='label': element 0 has a, b"):
        data.open([{"a": 1, "b": 2}])
    assert data.open(pairs, num_test=0).test is None
    for given, message in (
        (3, "data is a int: give digits"),
        ([1, 2], "element 0 is no"),
        ({"a": [1]}, "element 0 is no"),
    ):
        with pytest.raises(ValueError, match=message):
            data.open(given)


def test_hugging_face_sets_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(np.full((4, 4, 3), i, np.uint8)) for i in range(12)]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    whole = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(12)]}, features=kinds)
    whole.save_to_disk(tmp_path / "images")
    opened = data.open(f"hf:{tmp_path / 'images'}")
    assert [opened.train.inputs.shape, opened.class_names] == [(10, 4, 4, 3), ("a", "b")]
    np.testing.assert_array_equal(opened.train.inputs[:, 0, 0, 0] % 2, opened.train.targets)
    table = {"x": [float(i) for i in range(12)], "word": ["u", "v"] * 6, "label": [i % 2 for i in range(12)]}
    kinds = datasets.Features(
        {"x": datasets.Value("float32"), "word": datasets.Value("string"), "label": kinds["label"]}
    )
    parts = datasets.DatasetDict(train=datasets.Dataset.from_dict(table, features=kinds))
    parts.save_to_disk(tmp_path / "table")
    assert data.open(tmp_path / "table").class_names == ("a", "b")


def test_arrays_without_a_test_set_are_parted_and_words_are_classes(tmp_path):
    inputs, words = np.arange(20.0).reshape(10, 2), np.array(["low"] * 5 + ["high"] * 5)
    np.savez(tmp_path / "a.npz", inputs=inputs, targets=words)
    opened = data.open(tmp_path / "a.npz", num_test=4)
    assert opened.class_names == ("high", "low")
    parts = [opened.train, opened.test]
    assert [len(part.targets) for part in parts] == [6, 4]
    for part in parts:
        np.testing.assert_array_equal(part.targets, part.inputs[:, 0] < 10)
    assert data.open(tmp_path / "a.npz", num_test=0).test is None
    np.savez(tmp_path / "b.npz", inputs=inputs, targets=words, class_names=["low", "high"])
    assert data.open(tmp_path / "b.npz", num_test=0).train.targets.tolist() == [0] * 5 + [1] * 5
    np.savez(tmp_path / "c.npz", inputs=inputs, targets=words, class_names=["low", "mid"])
    np.savez(tmp_path / "d.npz", features=inputs, label=words)
    parted = {f"{part}_{name}": inputs for part in ("train", "test") for name in ("inputs", "targets")}
    np.savez(tmp_path / "e.npz", **parted)
    for name, message in (
        ("c", "targets has 'high', which is none of class_names"),
        ("d", "lacks inputs, targets: it has features, label; numpy.savez.*inputs=…, targets=….* names them"),
        ("e", "num_test=4, but there are test_inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            data.open(tmp_path / f"{name}.npz", num_test=4)
