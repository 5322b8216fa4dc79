"""The commands ``train`` and ``demo`` of ``python -m dmlkernels``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmlkernels.train.config import FIELDS, JobError, TrainConfig
from dmlkernels.train.losses import LOSSES, OPTIONS, WRAPPERS, flag

QUICK_STEPS, QUICK_EPOCH = 30, 10


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to below 1")
    return number


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="of everything that is drawn (default 0)")
    parser.add_argument("--device", help="cpu (default) or cuda")
    parser.add_argument("--backend", choices=("auto", "native", "triton", "reference"), help="of the loss")
    parser.add_argument("--batch", type=_count, help="images in a batch (default 2048, or all classes if fewer)")
    parser.add_argument("--steps", type=_count, help="optimizer steps of a run")


def add_parsers(subparsers: Any) -> None:
    """Add ``train`` and ``demo`` to the subcommands of ``python -m dmlkernels``."""
    # Only what the user types stands in the namespace: a resumed run must tell it from defaults.
    train = subparsers.add_parser(
        "train",
        argument_default=argparse.SUPPRESS,
        help="train embeddings on real images and show the result",
        description="Train embeddings on one half of the classes, test retrieval on the other, unseen half.",
    )
    train.set_defaults(run=_train)
    train.add_argument(
        "--data",
        help="glyphs (rendered, no download), folder:PATH (one sub-folder per class), sop:PATH, cars:PATH, "
        "inshop:PATH, npz:PATH",
    )
    train.add_argument("--image-size", type=_count, help="side of the images (default: the data set's)")
    train.add_argument("--model", help="small (default) or timm:NAME")
    train.add_argument("--pretrained", action="store_true", help="start from timm's weights")
    train.add_argument("--features", type=_count, help="size of the embeddings (default 128)")
    train.add_argument("--loss", choices=sorted(LOSSES), help="default ranked_list")
    train.add_argument("--easy-positive", action="store_true", help="pull towards the nearest positive only")
    for option, settings in OPTIONS.items():
        train.add_argument(flag(option), **settings)
    train.add_argument("--memory", type=_count, help="compare a batch with so many embeddings of the last ones")
    train.add_argument("--memory-start", type=_count, help="steps before that (default 0)")
    for name, wrapper in WRAPPERS.items():
        train.add_argument(flag(name), action="store_true", help=wrapper.help)
        for option, settings in wrapper.options.items():
            train.add_argument(flag(f"{name}_{option}"), **settings)
    _add_common(train)
    train.add_argument("--samples-per-class", type=_count, help="images of a class in a batch (default 8)")
    train.add_argument("--epoch-steps", type=_count, help="steps between evaluations (default: an eighth of the run)")
    train.add_argument("--lr", type=float, help="peak learning rate (default 1e-2)")
    train.add_argument("--flip", action="store_true", help="mirror half of the training images")
    train.add_argument("--merge-classes", type=_count, help="let so many classes share a training label, at random")
    train.add_argument("--label-noise", type=_share, help="share of the training labels that are made wrong, at random")
    train.add_argument(
        "--validate",
        action="store_true",
        help="hold out a fifth of the training classes and test on them, to choose settings with",
    )
    train.add_argument("--quick", action="store_true", help=f"a short run of {QUICK_STEPS} steps")
    train.add_argument("--out", type=Path, help="the run's folder (default runs/DATA-METHOD-SEED)")
    train.add_argument(
        "--resume", type=Path, nargs="?", const=None, help="go on with the run in this folder (default: that of --out)"
    )

    demo = subparsers.add_parser(
        "demo",
        argument_default=argparse.SUPPRESS,
        help="six short runs: four methods side by side",
        description="Ranked list loss, Anti-Collapse, Proxy-Anchor and spherical expansion on fine labels, easy "
        "positives on labels that merge four classes; always tested on single unseen classes.",
    )
    demo.set_defaults(run=_demo)
    demo.add_argument("--data", help="default glyphs")
    _add_common(demo)
    demo.add_argument("--quick", action="store_true", help="fewer steps, for a smoke test")
    demo.add_argument("--out", type=Path, help="where the picture and the six runs go (default runs/demo)")


def _guarded(work: Callable[[dict[str, Any]], None], args: argparse.Namespace, hint: str) -> int:
    """Run a command; what the user can put right is one sentence on stderr and exit code 2."""
    from dmlkernels.data import DataError

    given = {name: value for name, value in vars(args).items() if name != "run"}
    try:
        work(given)
    except (JobError, DataError) as error:
        print(f"dmlkernels: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dmlkernels: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dmlkernels: interrupted; {hint}", file=sys.stderr)
        return 130
    return 0


def _train(args: argparse.Namespace) -> int:
    return _guarded(run_train, args, "--resume goes on from the last epoch")


def _demo(args: argparse.Namespace) -> int:
    from dmlkernels.train import demo

    return _guarded(demo.main, args, "the finished runs are in their folders")


def _wrappers(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each wrapper that is on, with its options."""
    chosen: dict[str, dict[str, Any]] = {}
    for name, wrapper in WRAPPERS.items():
        options = {option: given[f"{name}_{option}"] for option in wrapper.options if f"{name}_{option}" in given}
        if name in given:
            chosen[name] = options
        elif options:
            raise JobError(f"{flag(f'{name}_{next(iter(options))}')} changes nothing without {flag(name)}: add it")
    return chosen


def run_train(given: dict[str, Any]) -> None:
    from dmlkernels.train import checkpoint, job, report

    chosen = {name: value for name, value in given.items() if name in FIELDS}
    chosen |= _wrappers(given)
    if "memory_start" in given and "memory" not in given:
        raise JobError("--memory-start changes nothing without --memory: add it")
    options = {name: value for name, value in given.items() if name in OPTIONS}
    if options:
        chosen["loss_options"] = options
    if given.get("quick"):
        chosen = {"steps": QUICK_STEPS, "epoch_steps": QUICK_EPOCH} | chosen
    if "resume" not in given:
        if "data" not in chosen:
            raise JobError("train needs --data, for instance --data glyphs")
        config = TrainConfig(**chosen)
        folder, saved = given.get("out") or config.default_folder, None
    else:
        folder = given["resume"] or given.get("out")
        if folder is None:
            folder = TrainConfig(**{"data": "glyphs"} | chosen).default_folder
        saved = checkpoint.read(folder)
        config = TrainConfig(**saved["config"])
        for name, value in chosen.items():
            if value != getattr(config, name):
                what = "options of the loss" if name == "loss_options" else flag(name)
                raise JobError(f"{what} {value}: the run in {folder} has {getattr(config, name)}; leave it out")
    outcome = job.run(config, folder, saved=saved)
    print(report.summary(outcome.result, folder))
