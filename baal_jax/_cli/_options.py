"""Commands: what each takes, as a dataclass whose documentation is its help. Nothing heavy is loaded for it."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Study:
    """Compares strategies of active learning, every one with many seeds.

    Every core runs a seed of its own. The same command goes on where it was killed, and asked for more seeds or more
    strategies it computes what is new; given in several shells or on several machines it shares the work. Prints the
    statistics; report.html in the folder has the curves. Compiled programs are kept in baal_jax of your folder of
    caches (~/.cache), so that another study like it starts at once.

        baal-jax study runs/digits
        baal-jax study runs/digits --strategies random bald margin badge --seeds 40 --reach 0.9
        baal-jax study runs/wine --data winequality.csv --target quality
        baal-jax study runs/mine --data photos/ --model mine.py:Network --strategies random mine.py:pick

    Attributes:
        folder: Where the study is or will be.
        data: digits (comes with scikit-learn); cifar10; tfds:NAME; hf:NAME of the cache or hf:FOLDER; an .npz file with
            inputs and targets, or train_inputs, train_targets, test_inputs and test_targets; a table (.csv, .tsv,
            .jsonl; of numbers .txt); or a folder with a folder of images for each class. What was read is printed.
        target: The column of a table that is to be predicted.
        task: What to do, where the kind of the target does not say: words and up to 20 whole numbers are classes.
        encode: Columns of sentences as numbers: tfidf, sentence:MODEL, or file.py:function of a list of texts.
        image_size: Pixels of a side that images become.
        data_dir: Where cifar10 and TFDS sets are; by default the folder that TFDS_DATA_DIR names.
        num_test: Examples that are held out where the data have no test set; by default a fifth.
        strategies: What to compare: random, batch_bald, badge, …; a heuristic such as margin, the top of whose scores
            is labelled; a ranking and a heuristic, such as power_bald; or file.py:name of an acquisition, of a function
            without arguments that makes one, or of a heuristic, a function of logits [S, N, C]. Random, or else the
            first, is the baseline.
        posteriors: How predictions vary: mc_dropout, deep_ensemble, swag, laplace, …; logistic_regression, a head with
            no network, right for embeddings, or its likeliest weights alone, logistic_regression_point, better for
            margin and badge than 20 draws; or file.py:name of a posterior or a function (model, trainer) that makes
            one; all strategies run with each.
        model: mlp, cnn, or file.py:name or package.module:name of a network: a linen or nnx module, a class of one
            (called with the number of outputs, of nnx with rngs=, too), or a function of the number of outputs that
            gives a linen module or a function rngs -> nnx module.
        rate: Dropout of mlp and cnn.
        features: What badge and other selections of sets read.
        seeds: Runs of every strategy.
        rounds: Fits of every run: num_initial + (rounds - 1) * query_size labels at the last one.
        num_initial: Labels drawn at random before the first round.
        query_size: Labels added in a round; several numbers are a schedule, whose last one holds for all later rounds.
        num_samples: Draws of the posterior, for scores and for evaluation.
        max_sample: Score only this many examples of the pool, others in every round.
        num_steps: Adam steps of every fit; the network starts afresh each time.
        batch_size: Labelled examples in a step.
        learning_rate: Of Adam.
        budget: A run stops at this many labels.
        metric: What matters most: accuracy, nll, brier, ece; rmse, mae, crps; by default accuracy or rmse. Or
            file.py:name of a function (log-probabilities [N, C], or mean and variance, and targets) -> number; lower
            is better where it has an attribute higher_is_better = False.
        reach: Its value for "labels to reach it"; by default one that most runs of the baseline reach.
        chunk: Seeds in a file, of one call; by default one a core, or all of them on an accelerator.
        part: i/n, every n-th file from the i-th on (0/n, …); by default the task of a Slurm array, or everything.
        same_device: Refuse to compute where another kind of device has.
        seed: Of everything.
    """

    folder: Path
    data: str = "digits"
    target: str | None = None
    task: Literal["classification", "regression"] | None = None
    encode: str = "tfidf"
    image_size: int | None = None
    data_dir: Path | None = None
    num_test: int | None = None
    strategies: tuple[str, ...] = ("random", "bald")
    posteriors: tuple[str, ...] = ("mc_dropout",)
    model: str = "mlp"
    rate: float = 0.5
    features: Literal["last_hidden", "gradient"] = "last_hidden"
    seeds: int = 20
    rounds: int = 15
    num_initial: int = 20
    query_size: tuple[int, ...] = (10,)
    num_samples: int = 20
    max_sample: int | None = None
    num_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3
    budget: int | None = None
    metric: str | None = None
    reach: float | None = None
    chunk: int | None = None
    part: str | None = None
    same_device: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes a study as one self-contained HTML page.

    The page needs no network and no other file: open it in a browser, or mail it. It holds learning curves, statistics,
    what was queried, uncertainty, calibration and the configuration, of a study that still runs as far as it has come.

        baal-jax report runs/digits
        baal-jax report runs/digits --out digits.html --figures paper/figures

    Attributes:
        results: Folder of the study: the one that holds study.json.
        out: The page to write. By default report.html in the folder of the study.
        figures: Folder for the same figures as files, for papers. Needs matplotlib: pip install 'baal_jax[plot]'.
        formats: Formats of those files: png, pdf, svg and others that matplotlib writes.
    """

    results: Path
    out: Path | None = None
    figures: Path | None = None
    formats: tuple[str, ...] = ("png", "pdf")


@dataclasses.dataclass(frozen=True)
class Propose:
    """Writes what people should label next: as JSON, and as tasks for Label Studio.

    The first call begins the project and needs --data and, for classes, --classes. Later calls need the folder alone:
    they fit to the answers that `ingest` has kept and ask for the best that is left, or again for what is missing.
    Photographs and rows that have come into --data since then are added, and said; so are settings that change:
    --model, --posterior, --strategy, --query-size, and those of the fit.
    Compiled programs are kept in baal_jax of your folder of caches (~/.cache).

        baal-jax propose cats --data photos/ --classes cat dog --model cnn
        # import query-0000.label_studio.json into Label Studio, with label_config.xml as its interface; label; export
        baal-jax ingest cats export.json
        baal-jax propose cats

    Attributes:
        folder: Of the project.
        data: The pool: a folder of images; a table of rows without labels (.csv, .tsv, .jsonl), whose text people are
            shown; or an .npz file with `inputs` and perhaps `references` (what
            people are shown: URLs, or texts) and `embeddings` (a row of numbers for each, for --cold-start). Inputs
            that are images are written as PNG files where there are no references.
        classes: Names of the classes; without them people give numbers.
        multi_label: Any number of classes may be right, or none.
        kind: Of what people are shown; image by default, of a table text.
        url_prefix: Put before names of image files, for Label Studio's local storage: /data/local-files/?d=photos/.
        image_size: Images of a folder are resized to this many pixels on each side; 32 by default.
        model: mlp by default, cnn, or file.py:name or package.module:name of a network, as of study.
        rate: Dropout of mlp and cnn; 0.5 by default.
        posterior: mc_dropout by default; or deep_ensemble, swag, laplace, …
        strategy: power_bald by default, for numbers variance; or bald, margin, badge, batch_bald, …
        num_initial: Examples of the first query; 20 by default.
        cold_start: What picks them: random by default; or typiclust, k_means, prob_cover, … from `embeddings` in the
            .npz file, or else from the inputs as they are.
        query_size: Examples of every other query; 20 by default.
        num_samples: Draws of the posterior; 20 by default.
        num_steps: Adam steps of a fit; 500 by default.
        batch_size: Labelled examples in a step; 32 by default.
        learning_rate: Of Adam; 0.001 by default.
        seed: Of everything; 0 by default.
        give_up: Does not wait for what is unanswered in the last query.
        review: Asks again for the labels that are least certain, by fits that did not see them.
    """

    folder: Path
    data: Path | None = None
    classes: tuple[str, ...] | None = None
    multi_label: bool = False
    kind: Literal["image", "text", "audio"] | None = None
    url_prefix: str | None = None
    image_size: int | None = None
    model: str | None = None
    rate: float | None = None
    posterior: str | None = None
    strategy: str | None = None
    num_initial: int | None = None
    cold_start: str | None = None
    query_size: int | None = None
    num_samples: int | None = None
    num_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    give_up: bool = False
    review: bool = False


@dataclasses.dataclass(frozen=True)
class Ingest:
    """Keeps the answers of an export of Label Studio: all of them or, where something is wrong, none.

    Skipped tasks are not asked for again. An export may hold any part of what was asked for; a later one corrects it.
    A table brings labels from elsewhere: columns id or reference, label, and perhaps annotator and time.

        baal-jax ingest cats export.json
        baal-jax ingest cats labels.csv

    Attributes:
        folder: Of the project.
        export: The file that Label Studio exported as JSON (not JSON-MIN), or a table (.csv).
        several: What counts where several people answered.
    """

    folder: Path
    export: Path
    several: Literal["newest", "majority"] = "newest"


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes what a labelling project knows: its labels, predictions of everything, and the network.

    labels.csv has all answers, disagreements.csv those of several people who do not agree. The network is fitted to all
    answers as for the next query: predictions.csv has probabilities and uncertainty of every example, network.stablehlo
    is the function itself, with its weights, and for a folder of images classify.py reads it and classifies
    photographs; that script needs jax and Pillow alone. learning_curve.csv says how good fits to the first labels are,
    on labels that they did not see (cross-validation).

        baal-jax export cats
        python cats/classify.py new_photo.jpg

    Attributes:
        folder: Of the project.
        labels_only: Fits nothing.
        folds: Of the cross-validation; 0 for none.
    """

    folder: Path
    labels_only: bool = False
    folds: int = 5


@dataclasses.dataclass(frozen=True)
class Amend:
    """Changes a labelling project that has begun; no label is lost, and exports of earlier tasks are still read.

        baal-jax amend cats --add-classes bird --rename cat=kitten --exclude 3 17

    New photographs need no command: put them into the folder of --data, and propose again.

    Attributes:
        folder: Of the project.
        add_classes: New classes.
        rename: old=new, for classes.
        exclude: Ids (baal_index) that are neither asked for nor trained on any more.
    """

    folder: Path
    add_classes: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    exclude: tuple[int, ...] = ()
