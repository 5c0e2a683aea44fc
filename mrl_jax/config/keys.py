"""How a config key is declared, and the keys of every run; those of a task stand beside it."""

from typing import Any, Literal, NamedTuple

from mrl_jax.errors import UsageError, shown

Items = Literal["numbers", "words", "texts", "pairs of numbers", "pairs of texts"]


class Key(NamedTuple):
    """One key of a config: everything that is to be said of it, said once.

    Attributes:
      default: its value unless a file or the command line says otherwise. It is also what runs that
        are older than the key are read with, so it keeps what was done before the key existed.
      meaning: for people; shown by --help_config.
      least: the smallest legal number.
      below: legal numbers are smaller than this.
      legal: the legal texts, where they are few; () = others are checked where they are used.
      resume: a run may be continued with another value: it says how a run is carried out, never
        what it computes (beyond rounding).
      items: what a tuple holds. "words" need no quotes on the command line.
      path: the value is a path, or each word is "NAME=PATH", which must exist.
      asks: of a key of `eval`: it changes what is asked of the same data, so that numbers of runs
        that differ in it do not compare.
    """

    default: Any
    meaning: str
    least: float | None = None
    below: float | None = None
    legal: tuple[str, ...] = ()
    resume: bool = False
    items: Items = "numbers"
    path: bool = False
    asks: bool = False

    @property
    def range(self) -> str:
        """The legal values in words, "" where the meaning says them."""
        bounds = [f">= {self.least}"] * (self.least is not None)
        bounds += [f"< {self.below}"] * (self.below is not None)
        return " | ".join(self.legal) or ", ".join(bounds)

    def check(self, name: str, value: Any) -> None:
        """Raises a UsageError unless a value of the right type is legal."""
        if self.legal and value not in self.legal:
            raise UsageError(
                f"config.{name} must be one of {', '.join(self.legal)}; got {shown(value)}"
            )
        low = self.least is not None and not value >= self.least
        if low or (self.below is not None and not value < self.below):
            legal = f"in [{self.least}, {self.below})" if self.below else f">= {self.least}"
            raise UsageError(f"config.{name} must be {legal}, got {value}")


COMMON = {
    "name": Key("run", "what the run is called in results and reports"),
    "seed": Key(0, "what all randomness follows from: initial weights, order of the data", 0),
    "task": Key("classification", "what is learned; chosen by default_config(TASK)"),
    "steps": Key(1000, "optimiser steps in all", 1),
    "batch_size": Key(128, "examples per step over all devices and processes", 1),
    "log_every": Key(20, "steps between lines of metrics.jsonl and of the console", 1, resume=True),
    "hang_minutes": Key(
        4.0,
        "a run that finishes no step for so many minutes, and for twenty times its longest step, "
        "is ended with stack traces and exit code 76; sixty times as long while it starts, "
        "compiles, measures or saves; 0 = no limit",
        0,
        resume=True,
    ),
    "nesting.dims": Key(
        (8, 16, 32, 64), "the granularities: prefixes that get a loss of their own"
    ),
    "nesting.weights": Key((), "importance c_m of each granularity; () = 1 each, as in the paper"),
    "head.kind": Key(
        "separate",
        "separate = MRL | shared = MRL-E | fixed = FF-m, one granularity; without classifiers, "
        "separate means a nesting; masked_lm: shared or fixed, as its head is the table of tokens",
    ),
    "optimizer.name": Key("adamw", "adamw | sgd (momentum 0.9) | adafactor"),
    "optimizer.nesterov": Key(False, "sgd: Nesterov momentum"),
    "optimizer.schedule": Key(
        "cosine", "cosine | linear (the reference's): from the peak to zero after warm-up"
    ),
    "optimizer.learning_rate": Key(1e-3, "the peak, reached after warm-up"),
    "optimizer.warmup_steps": Key(50, "steps in which the rate rises linearly", 0),
    "optimizer.weight_decay": Key(
        1e-4, "added to the gradient by sgd, decoupled from it by the others"
    ),
    "optimizer.decay_mask": Key(
        "kernel", "regular expression: parameters whose path matches are decayed"
    ),
    "optimizer.clip_norm": Key(
        0.0, "gradients of a larger global norm are scaled down to it; 0 = off"
    ),
    "optimizer.ema_decay": Key(
        0.0,
        "> 0: measure moving averages of parameters and batch statistics that keep this per step",
        0,
        1,
    ),
    "optimizer.accumulate": Key(1, "parts of a batch that are computed one after the other", 1),
    "mesh.data": Key(
        -1,
        "devices that split the batch and replicate the parameters; devices = data x fsdp x "
        "tensor, and one of them may be -1: what is left",
        resume=True,
    ),
    "mesh.fsdp": Key(1, "devices that split the batch and store parameters in pieces", resume=True),
    "mesh.tensor": Key(1, "devices that split the classes of the head", resume=True),
    "sharding": Key(
        (
            ("head/(kernel|bias)", "last:tensor+largest:fsdp"),
            ("kernel", "largest:fsdp"),
            (".*", "replicate"),
        ),
        "where parameters and their optimiser state live. Of the rules whose regular expression "
        "matches, the first that splits something wins, and every expression must match something. "
        "replicate | first:AXIS, last:AXIS (split that dimension) | largest:AXIS (split the "
        "largest dimension that divides evenly), or several for different dimensions: "
        "last:tensor+largest:fsdp. A rule whose axes have one device each, or whose largest:AXIS "
        "finds no dimension, splits nothing",
        items="pairs of texts",
        resume=True,
    ),
    "checkpoint.every": Key(
        200, "steps between checkpoints; the last step is always saved", 1, resume=True
    ),
    "checkpoint.keep": Key(2, "newest checkpoints that are kept on disk", 1, resume=True),
    "eval.every": Key(
        0, "steps between evaluations of the val split; 0 = only at the end", 0, resume=True
    ),
    "eval.batch_size": Key(256, "examples per evaluation step over all devices", 1, resume=True),
    "eval.dims": Key((), "prefixes to measure; () = the nesting and the dims between"),
}
