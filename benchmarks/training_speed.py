"""Graft's training beside its peers': speed, memory and what is learnt, on the same model, data, batches and seed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.shapes import ON_GPU, ON_PROCESSOR, SHAPES, Shape

if TYPE_CHECKING:
    from benchmarks.speed_cases import Case

_QUICK = ("27M", "answers")
_ON_GPU, _ON_PROCESSOR = ("16-bit", "4-bit"), ("32-bit", "16-bit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each model and case, or do the job of one row; the exit code is 1 where that cannot be."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--row"]:  # before all imports that a peer's own process would not have
        from benchmarks.speed_rows import serve

        serve(Path(given[1]))
        return 0
    return _compare(given)


def _compare(given: Sequence[str]) -> int:
    from training.errors import UserError

    chosen = _parser().parse_args(given)
    try:
        _check(chosen)
        for shape, case in _tables(chosen):
            _print_table(shape, case, chosen)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from benchmarks.speed_cases import CASES, Options

    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_speed", description=__doc__)
    parser.add_argument("--model", action="append", choices=list(SHAPES), help="once for each that is wanted")
    parser.add_argument("--case", action="append", choices=list(CASES), help="once for each that is wanted")
    parser.add_argument("--quick", action="store_true", help=f"only {' with '.join(_QUICK)}")
    parser.add_argument("--gpu", action="store_true", help="shapes of 1B and 8B on the GPU, in 16-bit and 4-bit (NF4)")
    parser.add_argument("--precision", action="append", choices=(*_ON_PROCESSOR, "4-bit"), help="only this one")
    parser.add_argument("--data", type=Path, default=Options.data, help="a dataset in the place of the sample")
    parser.add_argument("--text", type=Path, default=Options.text, help="a text file in the place of the sample")
    parser.add_argument("--rounds", type=_count, default=Options.rounds)
    parser.add_argument("--steps", type=_count, default=Options.steps, help="of each row in each round")
    parser.add_argument("--micro-batch", type=_count, default=Options.micro_batch)
    parser.add_argument("--dropout", type=float, default=Options.dropout, help="of the LoRA")
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument(
        "--every-best", action="store_true", help="every peer at its own best micro-batch too, in all cases"
    )
    parser.add_argument("--same-allocator", action="store_true", help="peers give memory back as Graft's worker does")
    parser.add_argument("--apart", action="store_true", help="one row after the other; always so on a GPU")
    return parser


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _check(chosen: argparse.Namespace) -> None:
    """Raise UserError for what does not go together or is not here."""
    from training.errors import UserError

    if chosen.gpu:
        import torch

        if not torch.cuda.is_available():
            raise UserError("There is no GPU that torch can use on this computer: leave --gpu out.")
    usual = _ON_GPU if chosen.gpu else _ON_PROCESSOR
    if wrong := [precision for precision in chosen.precision or [] if precision not in usual]:
        raise UserError(
            f"{wrong[0]} is measured {'without' if chosen.gpu else 'with'} --gpu: choose {' or '.join(usual)}."
        )
    if set(chosen.precision or []) == {"16-bit"} and not _computes_in_16_bits():
        raise UserError("This processor has no products in 16 bits, so Graft computes in 32: choose 32-bit.")
    here = [shape.name for shape in (ON_GPU if chosen.gpu else ON_PROCESSOR)]
    if wrong := [name for name in chosen.model or [] if name not in here]:
        raise UserError(
            f"{wrong[0]} is measured {'without' if chosen.gpu else 'with'} --gpu: choose one of {', '.join(here)}."
        )


def _computes_in_16_bits() -> bool:
    import torch

    from training.model import compute_dtype

    return compute_dtype("16-bit") != torch.float32


def _precisions(chosen: argparse.Namespace) -> list[str]:
    """Those of each table; without 16 bits where Graft would compute in 32 all the same."""
    wanted = list(dict.fromkeys(chosen.precision or (_ON_GPU if chosen.gpu else _ON_PROCESSOR)))
    if "16-bit" in wanted and not _computes_in_16_bits():
        print("16-bit is left out: this processor has no products in 16 bits", file=sys.stderr)
        wanted.remove("16-bit")
    return wanted


def _tables(chosen: argparse.Namespace) -> Iterator[tuple[Shape, Case]]:
    """Model and case of each table."""
    from benchmarks.speed_cases import CASES

    models = [shape.name for shape in (ON_GPU if chosen.gpu else ON_PROCESSOR)]
    quick_model, quick_case = (models[0] if chosen.gpu else _QUICK[0]), _QUICK[1]
    for name in chosen.model or ([quick_model] if chosen.quick else models):
        for case in chosen.case or ([quick_case] if chosen.quick else CASES):
            yield SHAPES[name], CASES[case]


def _print_table(shape: Shape, case: Case, chosen: argparse.Namespace) -> None:
    from benchmarks.peers import PEERS
    from benchmarks.speed_cases import Options, make_job, with_precision
    from benchmarks.speed_rounds import measure
    from benchmarks.speed_table import heading, table

    options = Options(
        rounds=chosen.rounds,
        steps=chosen.steps,
        micro_batch=chosen.micro_batch,
        dropout=chosen.dropout,
        seed=chosen.seed,
        data=chosen.data,
        text=chosen.text,
        own_best=PEERS if chosen.every_best else case.own_best,
        same_allocator=chosen.same_allocator,
        apart=chosen.apart or chosen.gpu,
    )

    def tell(words: str) -> None:
        print(f"{shape.name}, {case.name}: {words}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        job, measured = make_job(shape, case, options, Path(folder)), []
        for precision in _precisions(chosen):
            tell(precision)
            measured.append(measure(with_precision(job, precision), options, tell))
        print(f"{heading(job, case, options, measured)}\n\n{table(measured)}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
