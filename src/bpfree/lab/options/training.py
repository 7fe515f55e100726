"""The options of the commands that train, and the command line that reads them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import bpfree
from bpfree.lab.data import ClickSettings, GraphSettings, ImageSettings, SceneSettings, TextSettings
from bpfree.lab.data.augmentation import Augmentation
from bpfree.lab.disk.files import file_name
from bpfree.lab.errors import SettingsError
from bpfree.lab.process import replicas
from bpfree.lab.running.loggers import USUAL
from bpfree.lab.settings import Precision, Restored, RuleOverrides, RunSettings, Schedule, Times, rule_settings
from bpfree.lab.settings.checks import check_measured_on
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks import task_of
from bpfree.lab.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that both commands share.

    Args:
        data: The data set: digits (5,000 real handwritten digits that come with an installed package, no network),
            mnist (all 70,000), fashion-mnist (as many pictures of clothes), cifar10, cifar100 (60,000 photographs, 3 x
            32 x 32), folder (any pictures in the layout of ImageNet), text (language modelling on any text), cora,
            citeseer, pubmed (citation graphs, whose nodes are classified), cora-links and so on (their edges are
            predicted), clicks (a log that --schema describes), criteo, criteo-10k, avazu, movielens
            (logs whose schemas the package has), or blender, llff, nerfstudio (views of a scene in these formats).
        data_dir: The folder with the original files of MNIST, Fashion-MNIST or CIFAR, which are downloaded once without
            it. For folder, that with train/CLASS/*.jpg and val/CLASS/*.jpg. For text, that with the files train, valid
            and test (.txt or .txt.gz), one sentence or paragraph a line. For a graph, that with Planetoid's files,
            which are downloaded once without it. For clicks, that with the files that the schema names. For a scene,
            that with its pictures and cameras.
        images: The options for reading images.
        augmentation: Random changes of training images, drawn anew each time; by default none.
        text: The options for reading text.
        graph: The options for reading a graph.
        clicks: The options for reading a log of clicks.
        schema: The file that says which columns a log of clicks has; the same as --clicks.schema.
        scene: The options for reading the views of a scene.
        validation: Hold out this many training images and measure on them in place of the test set. Choose settings
            this way; then measure once on the test set.
        epochs: Passes over the training data, with an evaluation after each; by default 5 for images.
        steps: Steps of a run, in place of epochs; by default 800 for text, 5,000 for a scene, 250 for a graph's nodes
            and 400 for its edges.
        evaluations: The number of evaluations of a run that is counted in steps, at even distances; by default 8, for
            scenes 5 and for graphs 10.
        batch_size: Images, sequences or rays a step; by default 128 images, 16 sequences or 1,024 rays. A graph is one,
            and known nodes are counted with --graph.neighbors.
        lr: A learning rate for every rule that has none in --settings; without it, that of each rule's preset for
            images, 1e-3 for text, 5e-4 for scenes, and 1e-2 for graphs.
        schedule: The learning rate's schedule for every rule that has none in --settings: constant, cosine (to 0 at the
            last step), exponential (95 % after every epoch), multistep (a tenth after 60 % and again after 90 % of the
            steps), plateau (a tenth where the training loss has not fallen for more than 5 epochs), validation-plateau
            (a fifth where the loss on validation data has not fallen for more than one evaluation) or noam (up to lr in
            --settings.LABEL.warmup steps, then down with the root of the step); without it, that of each rule's preset
            for images (cosine), and constant otherwise.
        clip: The largest norm of all gradients of a step together; larger ones are scaled down. By default none are.
        accumulate: Cut a step's batch into so many equal parts, which run one after the other: less memory. Gradients
            are averaged; batch norm, dropout and feedback that learns see the parts.
        precision: float32, or bf16: matrix products and convolutions in bfloat16 (autocast); weights, optimizer and
            feedback stay in float32.
        window: Layers learn from the signal window - 1 taps further up, carried down to them by ordinary
            backpropagation; 1 is the plain rule. For every direct rule but Shallow that has none in --settings.
        alternate: Each step cuts one tap in so many, and the next step cuts others: segments are that many taps deep;
            1 is the plain rule. For the same rules.
        settings: Differences from a rule's preset, by label. For example --settings.DFA.lr 1e-4,
            --settings.DFA.optimizer SGD, --settings.DFA.window 2, --settings.Mine.rule my_file.MyRule.
        threads: Threads that torch computes with; by default its own choice.
        out: The folder for results; a name in runs/ by default.
        model: The network: MLP (by default for images), BottleneckMLP, CNN, LeNet4, AlexNet, VGG16, ResNet,
            CausalTransformer (by default for text), DeepFM (by default for clicks), FM, DeepCross, AFN, AutoInt, GCN
            (by default for nodes), ChebNet, SplineNet, GAT, DNA, GraphEncoder (by default for edges),
            NeRFReleased (by default for scenes), NeRF, NeRFTiny, any torch.nn.Module by import path, or hf:PATH for a
            language model of transformers from a config file or a folder with weights. Its arguments follow as
            --model.NAME; those called shape and classes come from the data.
        taps: Names or glob patterns of the modules of the network after which feedback enters; by default what the
            network suggests (suggested_taps of its class), or every non-linearity.
        error_at: The name of the module at whose output the error is taken; by default what the network suggests
            (suggested_error_at of its class), or its output.
        alignment: After which evaluations alignment is measured: every one, the last, or never.
        patience: For clicks: end the run where so many evaluations in a row have brought no better AUC on the
            validation rows, and take the weights of the best. By default a run goes on to its end, and keeps its last.
        restored: With patience, the weights that a run ends with: those of the best evaluation (best), or those only if
            it has ended early and else the last (best-if-stopped), as in the code of Launay et al. 2020.
        logger: Another place for the numbers of every evaluation: csv, tensorboard, or the import path of a class of
            Lightning's kind, such as lightning.pytorch.loggers.WandbLogger. It changes no number of a run.
    """

    data: str = "digits"
    data_dir: str | None = None
    validation: int = 0
    images: ImageSettings = field(default_factory=ImageSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    text: TextSettings = field(default_factory=TextSettings)
    graph: GraphSettings = field(default_factory=GraphSettings)
    clicks: ClickSettings = field(default_factory=ClickSettings)
    schema: str | None = None
    scene: SceneSettings = field(default_factory=SceneSettings)
    epochs: int | None = None
    steps: int | None = None
    evaluations: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    schedule: Schedule | None = None
    clip: float | None = None
    accumulate: int = 1
    precision: Precision = "float32"
    window: int = 1
    alternate: int = 1
    settings: dict[str, RuleOverrides] = field(default_factory=dict)
    threads: int | None = None
    out: str | None = None
    model: ModelSettings | None = None
    taps: list[str] | None = None
    error_at: str | None = None
    alignment: Times = "every"
    patience: int | None = None
    restored: Restored = "best"
    logger: str = USUAL

    def __post_init__(self) -> None:
        for label in self.settings:
            if label not in self.labels():
                hint = bpfree.errors.nearest(label, self.labels())
                raise SettingsError(f"--settings.{label}: no rule of this name is trained. {hint}")

    def labels(self) -> list[str]:
        """Return the labels of the rules."""
        raise NotImplementedError

    def run(self, label: str, seed: int, *, details: bool) -> RunSettings:
        """Return the settings of one run.

        Raises:
            SettingsError: A value means nothing.
        """
        task = self.task()
        model = self.model or ModelSettings(task.model)
        lr = task.lr if self.lr is None else self.lr
        epochs, steps = self.length()
        for option in ("taps", "error_at"):
            if getattr(self, option) in ([], ""):
                raise SettingsError(
                    f"--{option.replace('_', '-')}: name a module of the network, or leave it out for what it suggests."
                )
        if self.augmentation and task.samples != "images":
            raise SettingsError(f"--augmentation: {self.data} has no images; leave it out.")
        if task.samples in ("nodes", "edges"):
            self._check_graph(task.samples, steps)
        if self.patience is not None and task.chosen_by is None:
            raise SettingsError(f"--patience: runs on {self.data} go on to their end; leave it out.")
        rule = rule_settings(label, self.settings, lr, self.window, self.schedule or task.schedule, self.alternate)
        check_measured_on(rule, self._measured_on(task))
        return RunSettings(
            label=label,
            seed=seed,
            rule=rule,
            model=model.describe(),
            task=task.name,
            taps=model.suggestion("taps") if self.taps is None else self.taps,
            error_at=model.suggestion("error_at") if self.error_at is None else self.error_at,
            epochs=epochs,
            steps=steps,
            batch_size=task.batch_size if self.batch_size is None else self.batch_size,
            clip=self.clip,
            accumulate=self.accumulate,
            precision=self.precision,
            threads=torch.get_num_threads() if self.threads is None else self.threads,
            details=details,
            augmentation=self.augmentation,
            alignment=self.alignment,
            patience=self.patience,
            restored=self.restored,
            processes=replicas.count(),
        )

    def _measured_on(self, task: Task) -> str:
        """Return the set that runs are evaluated on, before the data is read."""
        with_validation: dict[str, TextSettings | ClickSettings | SceneSettings]
        with_validation = {"tokens": self.text, "rows": self.clicks, "views": self.scene}
        if task.samples in with_validation:
            return with_validation[task.samples].measured_on
        return "validation" if self.validation else "test"

    def _check_graph(self, samples: str, steps: int | None) -> None:
        """Refuse what does not fit together, or would have no effect."""
        drawn, size = self.graph.neighbors, self.batch_size
        if samples == "edges" and self.graph != replace(GraphSettings(), normalize=self.graph.normalize):
            raise SettingsError(f"--graph: of {self.data} all edges are learned from; --graph.normalize alone applies.")
        if self.accumulate > 1:
            raise SettingsError(f"--accumulate {self.accumulate}: a graph cannot be cut into parts; leave it out.")
        if self.precision != "float32":
            raise SettingsError(f"--precision {self.precision}: sums over a graph are in float32; leave it out.")
        if drawn and size is None:
            raise SettingsError("--graph.neighbors: say how many known nodes a step has, for example --batch-size 256.")
        if drawn and steps is None:
            raise SettingsError("--graph.neighbors: a run on drawn neighbours is counted in --steps, not in --epochs.")
        if size is not None and not drawn:
            raise SettingsError(
                f"--batch-size {size}: a step is the whole graph; leave it out, or draw parts with --graph.neighbors."
            )

    def task(self) -> Task:
        """The task for the data set."""
        return task_of(self.data)

    def length(self) -> tuple[int, int | None]:
        """The parts that a run has, and its steps if it is counted in those.

        Raises:
            SettingsError: It is to be counted in both, or is never evaluated, or after each epoch and so many times.
        """
        evaluations = self.task().evaluations if self.evaluations is None else self.evaluations
        if evaluations < 1:
            raise SettingsError(f"--evaluations {evaluations} must be at least 1.")
        if self.epochs is not None and self.steps is not None:
            raise SettingsError(f"--epochs {self.epochs} --steps {self.steps}: give one of the two.")
        epochs, steps = self.epochs, self.steps
        if epochs is None and steps is None:
            epochs, steps = self.task().epochs, self.task().steps
        if epochs is None:
            return evaluations, steps
        if self.evaluations is not None:
            raise SettingsError(
                f"--evaluations {evaluations}: a run counted in epochs is evaluated after each of them; leave it out, "
                "or count the run in --steps."
            )
        return epochs, None

    @property
    def reading(self) -> dict[str, Any]:
        """Options for reading the data, for :func:`bpfree.lab.data.load`."""
        found = {name: getattr(self, name) for name in ("validation", "images", "text", "graph", "clicks", "scene")}
        return found if self.schema is None else found | {"clicks": replace(self.clicks, schema=self.schema)}

    def directory(self) -> Path:
        """Return the folder for results."""
        return Path(self.out or Path("runs") / self.default_name()).expanduser()

    def default_name(self) -> str:
        """Return the default name of the folder for results."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Train one network by several rules over several seeds, and report.

    Args:
        rules: The labels of the rules, in the table's order: BP, Shallow (the frozen control), FA, uSF, frSF, brSF,
            DFA, sDFA, "ternary DFA", DRTP, GrAPE, FDFA, LMS, DKP, KP, WM, PEPITA, FG-A, FG-W, or labels of your own
            that --settings explains. By default BP, Shallow, FA, uSF, DFA and DRTP for images, BP, Shallow and DFA for
            text, and BP, Shallow, FA, DFA and, for nodes, DRTP for graphs.
        seeds: The number of seeds (0, 1, ...), or a list of them such as [0, 5].
    """

    rules: list[str] | None = None
    seeds: int | list[int] = 3

    def __post_init__(self) -> None:
        labels = self.labels()
        if not labels or len(set(labels)) < len(labels):
            raise SettingsError(f"--rules {' '.join(labels)}: name at least one rule, and each only once.")
        chosen = self.seed_list()
        if not chosen or len(set(chosen)) < len(chosen):
            raise SettingsError(f"--seeds {self.seeds}: give at least one seed, and each only once.")
        super().__post_init__()

    def labels(self) -> list[str]:
        """Return the labels of the rules."""
        return list(self.task().rules if self.rules is None else self.rules)

    def seed_list(self) -> list[int]:
        """Return the seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def default_name(self) -> str:
        """Return a name with the data set."""
        return f"compare-{self.data}"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """Train one network by one rule.

    Args:
        rule: The label of the rule, as for compare.
        seed: Determines the initial weights, the order of the data and the feedback.
        resume: Continue an interrupted run of the same settings from its last checkpoint, bit for bit: they are written
            after each evaluation, and every ten minutes between.
        visualize: A convolution of the network, by name, whose filters are shown by the images that excite them most.
    """

    rule: str = "DFA"
    seed: int = 0
    resume: bool = False
    visualize: str | None = None

    def labels(self) -> list[str]:
        """Return the label of the rule."""
        return [self.rule]

    def run(self, label: str, seed: int, *, details: bool) -> RunSettings:
        """Return the settings of one run; see :meth:`Options.run`."""
        return replace(super().run(label, seed, details=details), visualize=self.visualize)

    def default_name(self) -> str:
        """Return a name with the data set, the rule and the seed."""
        return f"train-{self.data}-{file_name(self.rule)}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Compare five rules on a network where fixed feedback fails: a minute, without a network connection.

    Args:
        out: The folder for results.
    """

    out: str = "runs/demo"
