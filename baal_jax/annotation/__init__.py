"""People label, from files: the next query as tasks of a labelling tool, and what the tool exports read back.

A project is a folder. Every command reads it, does one thing and writes one file last; what is killed is called again:

```text
project.json                    what is labelled: references to show, names of the classes, settings
query-0003.json                 what was asked for in a round
query-0003.label_studio.json    the same as tasks to import
label_config.xml                the labelling interface of these tasks
labels.json                     all answers so far
labels.csv, predictions.csv     what :func:`export` writes, with network.stablehlo
```

A project that has begun is changed by :func:`amend`: new examples and classes, other names, exclusions.

From Python: :func:`start` once, and then in turns :func:`propose`, whose :class:`Query` names the tasks to import, and
:func:`ingest`, which reads the export. A ``ValueError`` refuses a folder without a project, or with a file that is
damaged, lost or another project's.

The format is that of `Label Studio <https://labelstud.io>`_; nothing of it has to be installed.
"""

from baal_jax.annotation._assess import Assessment, assess
from baal_jax.annotation._export import export
from baal_jax.annotation._ingest import Ingested, ingest
from baal_jax.annotation._label_studio import Annotations, from_label_studio, labelling_config, to_label_studio
from baal_jax.annotation._project import amend, answers, start
from baal_jax.annotation._propose import Query, propose

__all__ = ["Annotations", "Assessment", "Ingested", "Query", "amend", "answers", "assess", "export",
           "from_label_studio", "ingest", "labelling_config", "propose", "start", "to_label_studio"]  # fmt: skip
