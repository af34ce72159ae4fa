"""The dry run and the scores as lines for people. Called by the command line."""

from edgemed_training.estimate import Check
from edgemed_training.evaluate import Evaluation

_SHOWN_SCORES = ("exact_match", "token_f1", "bleu", "rouge_1", "rouge_2", "rouge_l", "ended", "degenerate")
_SYSTEMS = {"adapter": "with adapter", "base": "base model", "nearest": "nearest training question"}
_SHOWN_CHARACTERS = 1500


def lines_of(check: Check) -> list[str]:
    """Return the dry run's findings."""
    size, shown, padding = check.size, check.first_example, f"{check.padding_share:.0%} padding"
    dropped = ", ".join(f"{count} {reason}" for reason, count in check.dropped.items()) or "none"
    return [
        f"recipe       {check.recipe or '-'} on {check.base_model}",
        f"examples     {check.examples} for training, {check.heldout_examples} held out; left out: {dropped}",
        f"tokens       {check.tokens:,} an epoch, {check.answer_tokens:,} of them answers",
        f"length       {check.longest_example} of {check.max_length}; {check.cut_share:.1%} of answers cut",
        f"rows         {check.packed_rows} packed, {check.fill_share:.1%} full; {padding} without packing",
        f"steps        {check.steps_per_epoch} an epoch, {check.steps} in all",
        f"parameters   {size.parameters / 1e6:,.0f} M, adapter {size.adapter_parameters / 1e6:.2f} M",
        f"system       the system prompt stands in the {check.system_prompt_in} message",
        f"GPU memory   about {_gib(check.total_bytes)}"
        + (" with activation checkpointing" if check.activation_checkpointing else ""),
        *(f"             {_gib(part):>9}  {name}" for name, part in check.memory_bytes.items()),
        "time         estimated for one epoch, without evaluation",
        *(
            f"             {gpu.gpu:<10} {_duration(gpu.seconds_per_epoch):>9}"
            + ("" if gpu.fits else "  does not fit")
            for gpu in check.gpus
        ),
        "first example; the loss looks at what stands between ⟦ and ⟧:",
        shown
        if len(shown) <= _SHOWN_CHARACTERS
        else f"{shown[: _SHOWN_CHARACTERS // 2]} … {shown[-_SHOWN_CHARACTERS // 2 :]}",
    ]


def score_lines(evaluation: Evaluation) -> list[str]:
    """Return a table: a line for each system, a column for each metric with its interval."""
    settings = evaluation.settings
    lines = [
        f"{evaluation.items} questions, greedy, at most {settings.max_new_tokens} new tokens; 95 % intervals"
    ]
    for system in evaluation.systems:
        lines.append(f"{_SYSTEMS[system.system]}:")
        lines += [
            f"  {name:<12} {score.value:8.3f}   [{score.low:.3f}, {score.high:.3f}]"
            for name in _SHOWN_SCORES
            if (score := system.scores.get(name))
        ]
    return lines


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
